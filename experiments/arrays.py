"""Arrays from files of others, npz or safetensors: headers before bytes, nothing unpickled, nothing evaluated."""

import ast
import errno
import math
import os
import pathlib
import zipfile

import numpy as np
from safetensors import SafetensorError, safe_open

# Of one file, unpacked; what is larger is no update that one machine attacks.
MOST_BYTES = 2**34
# What unpacks to more than so many times the size of its file is refused, unless that is little.
_MOST_TIMES, _LITTLE = 100, 2**28
_KINDS = "biuf"


def read(path: str | os.PathLike, *, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """Reads all arrays of a file.

    Args:
      path: a .npz file, or one of safetensors; what is inside counts, and not the name.
      most_bytes: how much its arrays may take.

    Returns:
      Numbers by name.

    Raises:
      ValueError: it is neither, is damaged, holds something else than numbers, or claims more than it has or may take.
      OSError: it cannot be read.
    """
    path = pathlib.Path(path)
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        if start[:4] == b"PK\x03\x04":
            found = _npz(path, most_bytes)
        elif start[8:9] == b"{":
            found = _safetensors(path, most_bytes)
        else:
            raise ValueError("neither npz nor safetensors")
    except Exception as error:
        # A damaged zip points to places before its start, which the system calls an invalid argument.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        # zipfile, zlib, numpy and safetensors have an exception each, and more, for damaged files.
        raise ValueError(f"{path}: expected arrays in npz or safetensors: {error}") from error
    if not found:
        raise ValueError(f"{path}: expected arrays in npz or safetensors: holds none")
    return found


def _npz(path: pathlib.Path, most_bytes: int) -> dict[str, np.ndarray]:
    most_bytes = min(most_bytes, max(_LITTLE, _MOST_TIMES * path.stat().st_size))
    found, left = {}, most_bytes
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                shape, order, dtype = _header(file)
                size = math.prod(shape) * dtype.itemsize
                left -= size
                if left < 0:
                    raise ValueError(f"{entry.filename} of shape {shape}: more than {most_bytes} bytes in all")
                # One byte more than there should be; a file that is shorter than it claims takes what it has.
                content = file.read(size + 1)
            if len(content) != size:
                raise ValueError(f"{entry.filename} of shape {shape}: expected {size} bytes")
            array = np.frombuffer(content, dtype).reshape(shape, order="F" if order else "C")
            found[entry.filename.removesuffix(".npy")] = array
    return found


def _header(file) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether Fortran's order, and dtype of an array in npy, refused before any of it is read."""
    magic = file.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY" or magic[6] not in (1, 2, 3):
        raise ValueError("not an array in npy")
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > 10_000:
        raise ValueError(f"a header of {length} bytes")
    header = ast.literal_eval(file.read(length).decode("latin1"))
    if not isinstance(header, dict) or set(header) != {"descr", "fortran_order", "shape"}:
        raise ValueError("a header of something else")
    if not isinstance(header["descr"], str) or np.dtype(header["descr"]).kind not in _KINDS:
        raise ValueError(f"dtype {header['descr']!r}: expected numbers")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"shape {shape!r}: expected a tuple of integers")
    return shape, bool(header["fortran_order"]), np.dtype(header["descr"])


def _safetensors(path: pathlib.Path, most_bytes: int) -> dict[str, np.ndarray]:
    if path.stat().st_size > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes")
    found = {}
    with safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 - no mapping
            try:
                found[name] = file.get_tensor(name)
            except (TypeError, AttributeError, SafetensorError) as error:
                kind = file.get_slice(name).get_dtype()
                raise ValueError(f"{name} of dtype {kind}: expected one that numpy has, such as F32") from error
            if found[name].dtype.kind not in _KINDS:
                raise ValueError(f"{name} of dtype {found[name].dtype}: expected numbers")
    return found
