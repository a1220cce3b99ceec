"""The store: groups whole or not at all, whatever was cut off; claims that end with their process."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxleak import files, store


@pytest.fixture
def found(tmp_path):
    kept = store.Store(tmp_path / "s")
    kept.append("one", {"a": {"loss": 1.5}, "b": {"loss": None}})
    kept.append("two", {"c": {"loss": [1, 2]}})
    return kept


def test_rows_come_back_by_key_in_their_order(found):
    rows = store.Store(found.folder).rows()
    assert list(rows) == ["a", "b", "c"]
    assert rows["b"] == {"key": "b", "group": "one", "place": 1, "of": 2, "loss": None}
    assert [json.loads(line)["loss"] for line in found.path.read_text().splitlines()] == [1.5, None, [1, 2]]


def test_a_new_store_is_empty(tmp_path):
    assert store.Store(tmp_path / "deep" / "er").rows() == {}


def test_every_cut_leaves_whole_groups_and_room_for_more(found):
    content = found.path.read_bytes()
    ends = [content.index(b'"c"') - len('{"key": '), len(content)]
    for cut in range(len(content) + 1):
        found.path.write_bytes(content[:cut])
        whole = ["a", "b", "c"] if cut == ends[1] else ["a", "b"] if cut >= ends[0] else []
        if cut % 2:
            assert list(found.rows()) == whole, cut
        found.append("three", {"d": {}})
        assert list(found.rows()) == [*whole, "d"], cut


def test_a_foreign_line_is_refused_by_its_place_and_not_cut_off(found):
    content = found.path.read_bytes()
    for line in (
        b"not JSON\n",
        b"[1]\n",
        b'{"key": "x"}\n',
        b"[" * 100_000 + b"\n",
        b'{"key":1,"group":"g","place":0,"of":1}\n',
    ):
        found.path.write_bytes(content + line)
        with pytest.raises(ValueError, match=r"results.jsonl:4: not a row of a store"):
            found.rows()
        assert found.path.read_bytes() == content + line


@pytest.mark.parametrize(("row", "match"), [({"key": 1}, "'key'"), ({"loss": float("nan")}, "not JSON compliant")])
def test_what_a_row_cannot_hold_is_refused_and_leaves_the_others(found, row, match):
    before = found.path.read_bytes()
    with pytest.raises(ValueError, match=match):
        found.append("three", {"d": {}, "e": row})
    assert found.path.read_bytes() == before


def test_a_full_disk_leaves_the_rows_that_were_there(found, monkeypatch):
    before = found.path.read_bytes()
    written = []

    class Full:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self._file.close()

        def write(self, content):
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(self._file.write(content[:7]))
            return 7

    monkeypatch.setattr(files, "open", lambda *args, **kwargs: Full(open(*args, **kwargs)), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left on device") as raised:
        found.append("three", {"d": {"loss": 1}})
    assert raised.value.filename == str(found.path)
    assert written
    assert found.path.read_bytes() == before


_HOLDER = """
    import sys, time
    from jaxleak.store import Store
    with Store(sys.argv[1]).claim("unit") as mine:
        print(mine, flush=True)
        time.sleep(60)
"""


def test_a_claim_ends_with_its_process_however_that_ends(tmp_path):
    kept = store.Store(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(_HOLDER), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "True\n"
        with kept.claim("unit") as mine, kept.claim("another") as too:
            assert (mine, too) == (False, True)
        os.kill(other.pid, signal.SIGKILL)
    with kept.claim("unit") as mine:
        assert mine
        with store.Store(tmp_path).claim("unit") as again:
            assert not again
    assert not (tmp_path / "claims").exists()
