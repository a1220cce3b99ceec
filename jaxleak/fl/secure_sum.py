"""Sums over clients of which the server sees nothing but the sum: pairwise masks that cancel.

Each pair of clients agrees on a random number s that the server does not know; the one with the larger index adds it,
the other subtracts it, modulo 2^64:

    n*_k1 = n_k1 + sum_{k1 > k2} s_{k1,k2} - sum_{k1 < k2} s_{k1,k2}

The protocol, whose messages the server relays:

    clients = [Client(k) for k in range(3)]
    publics = {client.index: client.public for client in clients}                        # to all
    messages = [client.mask(n, publics, round_number=0) for client, n in zip(clients, values)]    # to the server
    total = aggregate(messages, participants=publics, round_number=0)                    # to all

Masks: X25519, then HKDF-SHA256 over the shared secret, bound to the round, both indices and both public keys, gives the
key of a ChaCha20 stream, eight bytes a value. So a mask looks uniform in 0 to 2^64 - 1 to whoever knows neither private
key.

What holds, and what does not:

- The server is honest but curious: it relays all public keys and messages unchanged, and participants do not deviate.
  Public keys are not signed here. A public-key infrastructure is assumed; without one the server could put its own keys
  in their place, sit between every two clients and read all values.
- Server and some clients together learn the sum over the others, and nothing more. Everybody learns the sum: of two
  clients each learns the other's value, and one alone is refused.
- The sum is not protected: what it tells about a single value, as an attacker who knows all others can tell, it tells.
- A client that sends nothing costs the round: masks with it do not cancel, and there is no recovery (the secret shares
  of Bonawitz et al. are left out). The others start a new round without it. If its message of the old round arrives
  after all, the server has the sums with it and without it, and their difference is its value. The second mask of
  Bonawitz et al. is against that, and is left out too: a client that was slow must not send that message any more.
- Values are masked and not checked: a client may send what it likes.

Source: papers/learning_rate_perturbation eq. 14, after Bonawitz et al. 2017, "Practical secure aggregation for
privacy-preserving machine learning". RFC 7748 (X25519), RFC 5869 (HKDF), RFC 8439 (ChaCha20).
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from jaxleak import validate

_KEY_BYTES = 32
_NONCE_BYTES = 16


class MissingClientError(ValueError):
    """Clients sent nothing, so that nothing can be learned of the round.

    Attributes:
      missing: their indices, sorted.
    """

    def __init__(self, missing: Iterable[int], round_number: int):
        self.missing = tuple(sorted(missing))
        super().__init__(
            f"messages: nothing from client {', '.join(map(str, self.missing))} in round {round_number}: "
            "the masks of the others with it do not cancel, so the sum cannot be had and nothing is learned; "
            "expected a new round, with a new number, without it"
        )


class MaskedValue(NamedTuple):
    """What a client sends: says nothing of its value without the messages of all other participants.

    Attributes:
      sender: index of the client.
      round_number: the round it belongs to.
      participants: indices of all whose masks are in it, the sender among them, sorted.
      value: masked, uint64 [] or [n].
    """

    sender: int
    round_number: int
    participants: tuple[int, ...]
    value: np.ndarray


class Client:
    """One participant: a key pair, and the rounds it has taken part in.

    Attributes:
      index: of the client, an integer >= 0.
      public: its public key, 32 bytes.

    Args:
      index: of the client; no other participant may have it.
      private: the private key, 32 bytes; a fresh one from the operating system's randomness by default. A given one is
        for known answers. It does not bring back the rounds in which it was used before.
    """

    def __init__(self, index: int, *, private: bytes | None = None):
        _check_number("index", index)
        if private is not None and len(private) != _KEY_BYTES:
            raise ValueError(f"private: {len(private)} bytes: expected {_KEY_BYTES}")
        self.index = int(index)
        self._private = X25519PrivateKey.generate() if private is None else X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()
        self._rounds: set[int] = set()

    def mask(self, values: Any, publics: Mapping[int, bytes], *, round_number: int) -> MaskedValue:
        """Hides an integer, or a vector of them, behind the masks with all other participants.

        Args:
          values: an integer or integers [n], 0 <= value < 2^63 / participants, so that the sum cannot overflow.
          publics: the public key of each participant by its index, its own among them.
          round_number: an integer >= 0 that this client has not used: two values under the same masks would tell their
            difference.

        Returns:
          What to send to the server.

        Raises:
          ValueError: values out of range, a round used before, fewer than two participants, an own key that is not
            this client's, or a key that is none, by the index of its client.

        Source: papers/learning_rate_perturbation eq. 14.
        """
        _check_number("round_number", round_number)
        if round_number in self._rounds:
            raise ValueError(
                f"round_number={round_number}: client {self.index} used it before: expected a new one, "
                "because two values under the same masks tell their difference"
            )
        self._check(publics)
        array = _integers(values, len(publics))
        total = array.astype(np.uint64).ravel()
        for other, public in publics.items():
            if other != self.index:
                own = self._pair_mask(int(other), public, int(round_number), total.size)
                total = total + own if self.index > other else total - own
        self._rounds.add(int(round_number))
        participants = tuple(sorted(int(k) for k in publics))
        return MaskedValue(self.index, int(round_number), participants, total.reshape(array.shape))

    def _check(self, publics: Mapping[int, bytes]) -> None:
        for other in publics:
            _check_number("publics: index", other)
        if len(publics) < 2:
            raise ValueError(
                f"publics: {len(publics)} participants: expected at least 2, one alone would send its value"
            )
        if publics.get(self.index) != self.public:
            raise ValueError(f"publics: the key of client {self.index} is missing or is not its own")
        owners: dict[bytes, int] = {}
        for other, public in publics.items():
            if not isinstance(public, bytes) or len(public) != _KEY_BYTES:
                size = f"{len(public)} bytes" if isinstance(public, bytes) else type(public).__name__
                raise ValueError(f"publics: key of client {other}: {size}: expected {_KEY_BYTES} bytes")
            if public in owners:
                raise ValueError(f"publics: clients {owners[public]} and {other} have the same key")
            owners[public] = other

    def _pair_mask(self, other: int, public: bytes, round_number: int, count: int) -> np.ndarray:
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ValueError(
                f"publics: key of client {other}: the shared secret is zero: expected a point of large order"
            ) from error
        pair = sorted([(self.index, self.public), (other, public)])
        numbers = [round_number, *(index for index, _ in pair)]
        info = b"jaxleak.fl.secure_sum" + b"".join(n.to_bytes(8, "big") for n in numbers) + pair[0][1] + pair[1][1]
        key = HKDF(SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)
        # A key makes one stream only, because a round number is used once: the nonce needs not differ.
        stream = Cipher(algorithms.ChaCha20(key, bytes(_NONCE_BYTES)), mode=None).encryptor()
        return np.frombuffer(stream.update(bytes(8 * count)), "<u8").astype(np.uint64)


def aggregate(messages: Iterable[MaskedValue], *, participants: Iterable[int], round_number: int) -> Any:
    """The sum of the values behind the messages of all participants: what the server computes.

    Args:
      messages: what the clients sent, in any order.
      participants: indices of all clients that were to take part.
      round_number: of the round.

    Returns:
      An int, or int64 [n] where the values are vectors.

    Raises:
      MissingClientError: clients sent nothing; `missing` names them.
      ValueError: a client that sent twice or is no participant, a message of another round or with masks of other
        participants, or values of another length than those of the first.
    """
    validate.integer_at_least("round_number", round_number, 0)
    expected = tuple(sorted(int(k) for k in participants))
    if len(expected) < 2 or len(set(expected)) < len(expected):
        raise ValueError(f"participants={expected}: expected at least 2, each once")
    received = list(messages)
    for sender, count in Counter(message.sender for message in received).items():
        if count > 1:
            raise ValueError(f"messages: {count} of client {sender}: expected one of each participant")
    for message in received:
        place = f"message of client {message.sender}"
        if message.sender not in expected:
            raise ValueError(f"{place}: it is no participant: expected one of {expected}")
        if message.round_number != round_number:
            raise ValueError(f"{place}: of round {message.round_number}: expected round {round_number}")
        if message.participants != expected:
            raise ValueError(f"{place}: masks of clients {message.participants}: expected those of {expected}")
        if message.value.shape != received[0].value.shape:
            first = f"{received[0].value.shape}, as client {received[0].sender} sent"
            raise ValueError(f"{place}: values of shape {message.value.shape}: expected {first}")
    missing = set(expected) - {message.sender for message in received}
    if missing:
        raise MissingClientError(missing, round_number)
    total = np.sum([message.value for message in received], axis=0, dtype=np.uint64)
    return total.astype(np.int64) if total.ndim else int(total)


def secure_sum(values: Sequence[Any], *, dropped: Iterable[int] = ()) -> Any:
    """Plays all parties in one process: client k masks `values[k]` with a fresh key, the server adds up.

    Args:
      values: of each client, integers >= 0 or vectors of them.
      dropped: clients that are silent after the keys went round.

    Returns:
      The sum, an int or int64 [n].

    Raises:
      MissingClientError: where `dropped` names a client.
      ValueError: as `Client.mask` and `aggregate`.

    Example: the sums that ada-LRP needs, of examples and of classes, in one round.
      >>> from jaxleak.fl.secure_sum import secure_sum
      >>> secure_sum([[600, 3], [200, 1], [400, 2]]).tolist()
      [1200, 6]
    """
    if len(values) < 2:
        raise ValueError(f"values: {len(values)} clients: expected at least 2, the sum over one is its value")
    silent = set(dropped)
    unknown = silent - set(range(len(values)))
    if unknown:
        raise ValueError(f"dropped={sorted(unknown)}: expected clients 0 to {len(values) - 1}")
    clients = [Client(k) for k in range(len(values))]
    publics = {client.index: client.public for client in clients}
    speaking = [client for client in clients if client.index not in silent]
    messages = [client.mask(values[client.index], publics, round_number=0) for client in speaking]
    return aggregate(messages, participants=publics, round_number=0)


def encode(vector: Any, *, num_clients: int, fraction_bits: int = 24) -> np.ndarray:
    """Real numbers as the integers >= 0 that `Client.mask` takes: fixed point, shifted by half the range.

    Args:
      vector: real numbers [n] or [], |x| < 2^(62 - fraction_bits) / num_clients, where the number of clients is rounded
        up to a power of two.
      num_clients: how many vectors will be added.
      fraction_bits: numbers are rounded to the nearest multiple of 2^-fraction_bits; 0 to 52.

    Returns:
      int64, of the same shape.

    Raises:
      ValueError: NaN, infinity, or a number out of range.
    """
    half, scale = _fixed_point(num_clients, fraction_bits)
    with np.errstate(over="ignore"):
        scaled = np.rint(np.asarray(vector, np.float64) * scale)
    outside = np.flatnonzero(~(np.abs(scaled) < half))
    if outside.size:
        found = np.ravel(vector)[outside[0]]
        raise ValueError(f"vector: entry {outside[0]} is {found}: expected a finite number, |x| < {half / scale:g}")
    return scaled.astype(np.int64) + half


def decode(total: Any, *, num_clients: int, fraction_bits: int = 24) -> np.ndarray:
    """The sum of real numbers from the sum of what `encode` made of them.

    Args:
      total: integers [n] or [], the sum.
      num_clients: as given to `encode`.
      fraction_bits: as given to `encode`.

    Returns:
      float64, of the same shape, off by at most num_clients 2^-(fraction_bits + 1) and by the rounding of float64
      beyond 53 bits.
    """
    half, scale = _fixed_point(num_clients, fraction_bits)
    return (np.asarray(total, np.int64) - num_clients * half) / scale


def sum_vectors(vectors: Sequence[Any], *, fraction_bits: int = 24, dropped: Iterable[int] = ()) -> np.ndarray:
    """`secure_sum` of real vectors, such as flattened updates, in fixed point.

    Args:
      vectors: of each client, real numbers [n].
      fraction_bits: see `encode`.
      dropped: see `secure_sum`.

    Returns:
      The sum, float64 [n]; see `decode` for how far it is off.

    Raises:
      MissingClientError: where `dropped` names a client.
      ValueError: an entry that is not finite or out of range, by client, or as `secure_sum`.
    """
    encoded = []
    for k, vector in enumerate(vectors):
        try:
            encoded.append(encode(vector, num_clients=len(vectors), fraction_bits=fraction_bits))
        except ValueError as error:
            raise ValueError(f"client {k}: {error}") from error
    total = secure_sum(encoded, dropped=dropped)
    return decode(total, num_clients=len(vectors), fraction_bits=fraction_bits)


def _integers(values: Any, num_clients: int) -> np.ndarray:
    array = np.asarray(values)
    largest = (2**63 - 1) // num_clients
    expected = f"expected an integer or integers [n], 0 to {largest}, which is below 2^63 / {num_clients} clients"
    if array.dtype.kind not in "iu" or array.ndim > 1 or not array.size:
        raise ValueError(f"values: {array.dtype} of shape {array.shape}: {expected}")
    for extreme in (int(array.min()), int(array.max())):
        if not 0 <= extreme <= largest:
            raise ValueError(f"values: {extreme}: {expected}")
    return array


def _fixed_point(num_clients: int, fraction_bits: int) -> tuple[int, float]:
    """Half the range of an encoded number, and how many of its units make one."""
    validate.integer_at_least("num_clients", num_clients, 1)
    validate.integer_at_least("fraction_bits", fraction_bits, 0)
    if fraction_bits > 52:
        raise ValueError(f"fraction_bits={fraction_bits}: expected at most 52")
    return 2 ** (62 - (num_clients - 1).bit_length()), 2.0**fraction_bits


def _check_number(name: str, value: Any) -> None:
    validate.integer_at_least(name, value, 0)
    if value >= 2**64:
        raise ValueError(f"{name}={value}: expected < 2^64")
