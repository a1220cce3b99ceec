"""Files, written whole or not at all."""

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
