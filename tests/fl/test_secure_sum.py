"""Secure sums: masks rebuilt from the RFCs, sums against Python's integers, and everything that must be refused."""

import hashlib
import hmac
import struct

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from jaxleak.fl.secure_sum import (
    Client,
    MissingClientError,
    aggregate,
    decode,
    encode,
    secure_sum,
    sum_vectors,
)

# RFC 7748, section 6.1: private keys, public keys, the secret they share.
ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
LARGEST = 2**63 - 1

quickly = hypothesis.settings(deadline=None, max_examples=40, derandomize=True)


def hkdf(secret, info, length):
    """RFC 5869 with SHA-256 and no salt."""
    key, block, out = hmac.digest(bytes(32), secret, hashlib.sha256), b"", b""
    for i in range(-(-length // 32)):
        block = hmac.digest(key, block + info + bytes([i + 1]), hashlib.sha256)
        out += block
    return out[:length]


def chacha20_block(key, counter, nonce):
    """RFC 8439, section 2.3."""
    start = [
        *struct.unpack("<4I", b"expand 32-byte k"),
        *struct.unpack("<8I", key),
        counter,
        *struct.unpack("<3I", nonce),
    ]
    x = list(start)

    def quarter(a, b, c, d):
        for i, j, k, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[i] = (x[i] + x[j]) % 2**32
            x[k] ^= x[i]
            x[k] = (x[k] << bits | x[k] >> (32 - bits)) % 2**32

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<16I", *((a + b) % 2**32 for a, b in zip(x, start, strict=True)))


def group(count):
    clients = [Client(k) for k in range(count)]
    return clients, {client.index: client.public for client in clients}


def messages_of(clients, publics, values, round_number=0):
    return [c.mask(v, publics, round_number=round_number) for c, v in zip(clients, values, strict=True)]


def test_the_references_of_these_tests_are_the_rfcs():
    assert hkdf(b"\x0b" * 22, b"", 42).hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    )
    assert chacha20_block(bytes(range(32)), 1, bytes.fromhex("000000090000004a00000000")).hex() == (
        "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
        "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e"
    )


def test_masks_are_what_the_rfcs_say():
    alice, bob = Client(3, private=ALICE), Client(8, private=BOB)
    assert (alice.public, bob.public) == (ALICE_PUBLIC, BOB_PUBLIC)
    publics = {8: bob.public, 3: alice.public}
    info = b"jaxleak.fl.secure_sum" + struct.pack(">3Q", 5, 3, 8) + ALICE_PUBLIC + BOB_PUBLIC
    key = hkdf(SHARED, info, 32)
    # Ten values: more than the eight of one block.
    stream = chacha20_block(key, 0, bytes(12)) + chacha20_block(key, 1, bytes(12))
    masks = struct.unpack("<10Q", stream[:80])
    low = alice.mask(range(10), publics, round_number=5)
    high = bob.mask(range(10), publics, round_number=5)
    assert low.value.tolist() == [(v - s) % 2**64 for v, s in enumerate(masks)]
    assert high.value.tolist() == [(v + s) % 2**64 for v, s in enumerate(masks)]
    assert low.value.dtype == np.uint64
    assert (low.sender, low.round_number, low.participants) == (3, 5, (3, 8))


@quickly
@hypothesis.given(st.data())
def test_the_sum_is_the_sum(data):
    count = data.draw(st.integers(2, 5))
    size = data.draw(st.integers(0, 3))
    number = st.integers(0, LARGEST // count) | st.sampled_from([0, LARGEST // count])
    values = data.draw(
        st.lists(st.lists(number, min_size=max(size, 1), max_size=max(size, 1)), min_size=count, max_size=count)
    )
    expected = [sum(column) for column in zip(*values, strict=True)]
    if size:
        found = secure_sum(values)
        assert found.dtype == np.int64
        assert found.tolist() == expected
    else:
        found = secure_sum([own[0] for own in values])
        assert type(found) is int
        assert found == expected[0]


def test_order_indices_and_types_do_not_matter():
    clients = [Client(k) for k in (9, 2, 40)]
    publics = {client.index: client.public for client in clients}
    kinds = [np.array([1, 2], np.uint8), [3, 4], np.array([5, 6], np.int32)]
    messages = messages_of(clients, publics, kinds)
    for order in (messages, messages[::-1]):
        assert aggregate(order, participants=[40, 2, 9], round_number=0).tolist() == [9, 12]
    single = messages_of(clients, publics, [np.uint64(7), 8, np.int16(9)], round_number=1)
    assert aggregate(single, participants=publics, round_number=1) == 24


def uniform(numbers):
    """The chance that numbers in 0 to 2^64 - 1 this uneven are uniform: of their size, and of their lowest bits."""
    numbers = np.asarray(numbers, np.uint64)
    low = np.bincount((numbers & np.uint64(15)).astype(int), minlength=16)
    return min(scipy.stats.kstest(numbers / 2.0**64, "uniform").pvalue, scipy.stats.chisquare(low).pvalue)


def test_a_masked_value_alone_is_uniform_and_so_are_all_but_one():
    alone, most = [], []
    for _ in range(800):
        clients, publics = group(3)
        messages = messages_of(clients, publics, [5, 600, 7])
        alone.append(messages[1].value)
        most.append(messages[0].value + messages[1].value)
    # Keys are fresh each time, so the limit is one that chance does not reach.
    assert uniform(alone) > 1e-7
    assert uniform(most) > 1e-7
    # The test sees what is not uniform.
    assert uniform(np.arange(800)) < 1e-7
    assert uniform(np.asarray(alone) & ~np.uint64(1)) < 1e-7


def changed_bits(a, b):
    return int(np.bitwise_count(a.value ^ b.value).sum())


@pytest.mark.parametrize("what", ["peer", "round", "own key", "own index", "peer's index"])
def test_one_change_changes_half_of_all_bits(what):
    count = 256
    peer, other = Client(1), Client(1)

    def message(private=ALICE, index=0, peer=peer, peer_index=1, round_number=0):
        own = Client(index, private=private)
        publics = {index: own.public, peer_index: peer.public}
        return own.mask([7] * count, publics, round_number=round_number)

    change = {
        "peer": {"peer": other},
        "round": {"round_number": 1},
        "own key": {"private": BOB},
        "own index": {"index": 4, "peer_index": 5},
        "peer's index": {"peer_index": 2},
    }[what]
    assert changed_bits(message(), message()) == 0
    bits = 64 * count
    # Binomial: half of them, six standard deviations of leeway.
    assert abs(changed_bits(message(), message(**change)) - bits / 2) < 6 * np.sqrt(bits) / 2


def test_entries_of_a_vector_have_masks_of_their_own():
    clients, publics = group(2)
    value = clients[0].mask([0] * 5_000, publics, round_number=0).value
    assert len(set(value.tolist())) == 5_000
    assert uniform(value) > 1e-7


def test_a_client_that_drops_out_is_named_and_nothing_is_learned():
    with pytest.raises(MissingClientError, match="nothing from client 1, 3 in round 0: .* without it") as caught:
        secure_sum([1, 2, 3, 4], dropped=[3, 1])
    assert caught.value.missing == (1, 3)
    with pytest.raises(MissingClientError):
        aggregate([], participants=[0, 1], round_number=0)


def test_the_others_start_a_new_round_without_it():
    clients, publics = group(3)
    values = [10, 20, 30]
    first = messages_of(clients, publics, values, round_number=0)
    with pytest.raises(MissingClientError) as caught:
        aggregate(first[:2], participants=publics, round_number=0)
    rest = {k: public for k, public in publics.items() if k not in caught.value.missing}
    second = messages_of(clients[:2], rest, values[:2], round_number=1)
    total = aggregate(second, participants=rest, round_number=1)
    assert total == 30
    # What the docstring warns of: the message that came too late, and the value of its client with it.
    assert aggregate(first, participants=publics, round_number=0) - total == values[2]


def test_a_round_serves_once():
    clients, publics = group(2)
    clients[0].mask(1, publics, round_number=4)
    with pytest.raises(ValueError, match=r"round_number=4: client 0 used it before: expected a new one"):
        clients[0].mask(2, publics, round_number=4)
    clients[0].mask(2, publics, round_number=3)
    # A refused call has sent nothing, so its round is still free.
    with pytest.raises(ValueError, match="values"):
        clients[0].mask(-1, publics, round_number=5)
    clients[0].mask(1, publics, round_number=5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: [*m, m[1]], "messages: 2 of client 1: expected one of each participant"),
        (
            lambda m: [m[0], m[1], m[2]._replace(sender=7)],
            r"client 7: it is no participant: expected one of \(0, 1, 2\)",
        ),
        (lambda m: [m[0], m[1]._replace(round_number=1), m[2]], "client 1: of round 1: expected round 0"),
        (
            lambda m: [m[0], m[1]._replace(participants=(0, 1)), m[2]],
            r"client 1: masks of clients \(0, 1\): expected those of \(0, 1, 2\)",
        ),
        (
            lambda m: [m[0], m[1], m[2]._replace(value=np.zeros(2, np.uint64))],
            r"client 2: values of shape \(2,\): expected \(\), as client 0 sent",
        ),
    ],
)
def test_messages_that_do_not_belong_together_are_refused(change, message):
    clients, publics = group(3)
    messages = messages_of(clients, publics, [1, 2, 3])
    assert aggregate(messages, participants=publics, round_number=0) == 6
    with pytest.raises(ValueError, match=message):
        aggregate(change(messages), participants=publics, round_number=0)


def test_wrong_participants_are_refused():
    for participants in ([], [0], [0, 0]):
        with pytest.raises(ValueError, match="participants=.*: expected at least 2, each once"):
            aggregate([], participants=participants, round_number=0)
    with pytest.raises(ValueError, match="values: 1 clients: expected at least 2"):
        secure_sum([3])
    with pytest.raises(ValueError, match=r"dropped=\[2\]: expected clients 0 to 1"):
        secure_sum([3, 4], dropped=[2])
    with pytest.raises(ValueError, match=r"client 1: values of shape \(2,\): expected \(3,\)"):
        secure_sum([[1, 2, 3], [1, 2]])


@pytest.mark.parametrize(
    "values", [-1, LARGEST // 2 + 1, 2**63, 2**80, [0, -5], 1.0, [1.5], True, "3", [], [[1]], None, np.nan]
)
def test_values_that_could_overflow_or_are_no_counts_are_refused(values):
    clients, publics = group(2)
    with pytest.raises(ValueError, match=r"values: .*expected an integer or integers \[n\], 0 to 4611686018427387903"):
        clients[0].mask(values, publics, round_number=0)


def test_keys_that_are_none_are_refused():
    own = Client(0)

    def mask(publics):
        own.mask(1, publics, round_number=0)

    for public, found in ((b"1" * 31, "31 bytes"), (b"1" * 33, "33 bytes"), (b"", "0 bytes"), ("1" * 32, "str")):
        with pytest.raises(ValueError, match=f"publics: key of client 1: {found}: expected 32 bytes"):
            mask({0: own.public, 1: public})
    # Points of small order: whatever the private key, the shared secret is zero.
    for public in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(ValueError, match="publics: key of client 1: the shared secret is zero"):
            mask({0: own.public, 1: public})
    for publics in ({1: Client(1).public, 2: Client(2).public}, {0: Client(0).public, 1: Client(1).public}):
        with pytest.raises(ValueError, match="publics: the key of client 0 is missing or is not its own"):
            mask(publics)
    with pytest.raises(ValueError, match="publics: clients 0 and 1 have the same key"):
        mask({0: own.public, 1: own.public})
    with pytest.raises(ValueError, match="publics: 1 participants: expected at least 2"):
        mask({0: own.public})
    with pytest.raises(ValueError, match="publics: index=-1: expected >= 0"):
        mask({0: own.public, -1: Client(1).public})


def test_wrong_clients_and_rounds_are_refused():
    for index in (-1, 0.5, True):
        with pytest.raises(ValueError, match="index="):
            Client(index)
    with pytest.raises(ValueError, match="index=18446744073709551616: expected < 2"):
        Client(2**64)
    with pytest.raises(ValueError, match="private: 31 bytes: expected 32"):
        Client(0, private=bytes(31))
    clients, publics = group(2)
    for round_number in (-1, 1.0, 2**64):
        with pytest.raises(ValueError, match="round_number="):
            clients[0].mask(1, publics, round_number=round_number)


def test_the_private_key_does_not_show():
    client = Client(0, private=ALICE)
    assert ALICE.hex() not in repr(client) + str(vars(client))
    assert Client(0).public != Client(0).public


FLOATS = st.floats(-1e3, 1e3, width=32)


@quickly
@hypothesis.given(st.data(), st.integers(10, 40))
def test_real_vectors_add_up_to_the_resolution_of_fixed_point(data, fraction_bits):
    count = data.draw(st.integers(2, 4))
    vectors = data.draw(st.lists(st.lists(FLOATS, min_size=3, max_size=3), min_size=count, max_size=count))
    found = sum_vectors(vectors, fraction_bits=fraction_bits)
    assert found.dtype == np.float64
    np.testing.assert_allclose(
        found, np.sum(vectors, axis=0), rtol=1e-15, atol=count * 2.0 ** -(fraction_bits + 1) + 1e-12
    )


def test_fixed_point_takes_all_that_it_says_and_no_more():
    # Three clients count as four: |x| < 2^60 units.
    edge = 2.0**36
    inside = np.nextafter(edge, 0)
    settings = {"num_clients": 3, "fraction_bits": 24}
    total = secure_sum([encode([inside, -inside], **settings)] * 3)
    np.testing.assert_allclose(decode(total, **settings), [3 * inside, -3 * inside], rtol=1e-15)
    for value in (edge, -edge, np.nan, np.inf, 1e308):
        with pytest.raises(ValueError, match=r"vector: entry 1 is .*: expected a finite number, \|x\| < 6\.87195e"):
            encode([0.0, value], **settings)
    with pytest.raises(ValueError, match="client 1: vector: entry 0 is nan"):
        sum_vectors([[0.0], [np.nan]])
    with pytest.raises(MissingClientError):
        sum_vectors([[0.0], [1.0]], dropped=[0])
    for fraction_bits in (-1, 53, 2.0):
        with pytest.raises(ValueError, match="fraction_bits="):
            encode([0.0], num_clients=2, fraction_bits=fraction_bits)
    with pytest.raises(ValueError, match="num_clients=0: expected >= 1"):
        encode([0.0], num_clients=0)


def test_rounding_is_to_the_nearest():
    settings = {"num_clients": 2, "fraction_bits": 1}
    total = secure_sum([encode([0.2, 0.3, -0.3], **settings), encode([0.2, 0.3, 0.5], **settings)])
    assert decode(total, **settings).tolist() == [0.0, 1.0, 0.0]
