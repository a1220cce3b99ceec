"""Arrays from files of others: whole ones come back, everything else is one clear error, quickly, in little memory."""

import io
import json
import pickle
import resource
import struct
import time
import zipfile

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import safetensors.numpy
from damage import damaged

from jaxleak.experiments import arrays

GOOD = {"params/a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(3), "c": np.zeros((0, 2), np.int8)}


def npz(found=None, **zipped):
    file = io.BytesIO()
    (np.savez_compressed if zipped.get("small") else np.savez)(file, **(GOOD if found is None else found))
    return file.getvalue()


def tensors(found=None):
    return safetensors.numpy.save(GOOD if found is None else found)


def read(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    return arrays.read(path)


@pytest.mark.parametrize("content", [npz(), npz(small=True), tensors()])
def test_whole_files_come_back(tmp_path, content):
    found = read(tmp_path, content)
    assert set(found) == set(GOOD)
    for name, array in GOOD.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_fortran_order_comes_back(tmp_path):
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    np.testing.assert_array_equal(read(tmp_path, npz({"a": array}))["a"], array)


def claiming(header, body=b""):
    """An npz file with one array of such a header."""
    text = header if isinstance(header, bytes) else repr(header).encode()
    text = text.ljust(118) + b"\n"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body)
    return file.getvalue()


def tensors_claiming(header, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


class Evil:
    """What unpickling would run."""

    def __reduce__(self):
        return exec, ("raise SystemExit('unpickled')",)


FOREIGN = {
    "empty": b"",
    "text": b"hello",
    "pickle": pickle.dumps(Evil()),
    "huge shape": claiming({"descr": "<f4", "fortran_order": False, "shape": (10**12,)}),
    "huge shape of many axes": claiming({"descr": "<f4", "fortran_order": False, "shape": (10**6,) * 6}),
    "negative shape": claiming({"descr": "<f4", "fortran_order": False, "shape": (-1,)}),
    "shape of text": claiming({"descr": "<f4", "fortran_order": False, "shape": "x"}),
    "objects": claiming({"descr": "|O", "fortran_order": False, "shape": (1,)}, pickle.dumps([Evil()])),
    "text dtype": claiming({"descr": "<U3", "fortran_order": False, "shape": (1,)}, bytes(12)),
    "records": claiming({"descr": [("x", "<f4")], "fortran_order": False, "shape": (1,)}, bytes(4)),
    "unknown dtype": claiming({"descr": "<q99", "fortran_order": False, "shape": (1,)}),
    "code in a header": claiming(b"__import__('os').abort()"),
    "deep header": claiming(b"(" * 100 + b")" * 100),
    "other keys": claiming({"shape": (1,)}),
    "short body": claiming({"descr": "<f4", "fortran_order": False, "shape": (3,)}, bytes(8)),
    "long body": claiming({"descr": "<f4", "fortran_order": False, "shape": (1,)}, bytes(8)),
    "no npy": (lambda file: (zipfile.ZipFile(file, "w").writestr("a", "x"), file.getvalue())[1])(io.BytesIO()),
    "tensor huge": tensors_claiming({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
    "tensor offsets": tensors_claiming({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(4)),
    "tensor of bfloat16": tensors_claiming({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}, bytes(2)),
    "tensor header length": struct.pack("<Q", 2**60) + b"{" + bytes(100),
    "tensor deep": struct.pack("<Q", 20_002) + b"{" + b'"a":' + b"[" * 9_998 + b"]" * 9_999 + b"}" + bytes(10),
    "no tensors": tensors_claiming({}),
    "truncated npz": npz()[:-30],
    "truncated tensors": tensors()[:-3],
    "elf": b"\x7fELF" + bytes(60),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
}


@pytest.mark.parametrize("name", [name for name, content in FOREIGN.items() if content is not None])
def test_foreign_files_are_refused_by_name(tmp_path, name):
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"file: expected arrays in npz or safetensors: "):
        read(tmp_path, FOREIGN[name])
    assert time.perf_counter() - started < 1


def test_a_file_of_objects_that_numpy_wrote_is_refused_unread(tmp_path):
    file = io.BytesIO()
    np.savez(file, a=np.array([Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"dtype '\|O': expected numbers"):
        read(tmp_path, file.getvalue())


def test_what_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(2**22, np.float32))
    assert path.stat().st_size < 2**16
    with pytest.raises(ValueError, match=r"more than 1048576 bytes in all"):
        arrays.read(path, most_bytes=2**20)


def test_what_unpacks_to_many_times_its_size_is_refused_unless_it_is_little(tmp_path, monkeypatch):
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, a=np.zeros(2**22, np.float32))
    assert arrays.read(path)["a"].shape == (2**22,)
    monkeypatch.setattr(arrays, "_LITTLE", 2**20)
    most = 100 * path.stat().st_size
    with pytest.raises(ValueError, match=rf"a.npy of shape \(4194304,\): more than {most} bytes in all"):
        arrays.read(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError):
        arrays.read(tmp_path / "none.npz")


@hypothesis.settings(max_examples=600, deadline=1000)
@hypothesis.given(st.sampled_from([npz(), npz(small=True), tensors()]), st.data())
def test_any_damage_is_refused_or_harmless(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    path.write_bytes(damaged(content, data))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    problem, found = None, {}
    try:
        found = arrays.read(path)
    except ValueError as error:
        problem = str(error)
    assert problem is None or problem.startswith(str(path))
    assert all(array.dtype.kind in "biuf" for array in found.values())
    # In KiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
