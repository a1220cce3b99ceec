"""Files, written whole or not at all, and lines that are added to one, all or none."""

import os
import pathlib


def write(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file whole or not at all; one that was there stays until the new one is whole.

    Raises:
      OSError: it cannot be written, as on a full disk; names the file.
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def append(path: str | os.PathLike, content: bytes) -> None:
    """Adds to a file, all or nothing; makes it where there is none.

    Raises:
      OSError: it cannot be written, as on a full disk; names the file.
    """
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                # A raw write may stop short on a full disk; the one after it then says why.
                written = file.write(content)
                while written < len(content):
                    written += file.write(content[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
