"""Small files, read and written at once with few system calls."""

from __future__ import annotations

import os

__all__ = ["make_dir", "read_text", "write_text"]


def write_text(path: str, text: str, mode: int = 0o600) -> None:
    """Replace the content of `path`; bytes that are no text travel as surrogates.

    Raises:
        OSError: If it could not be written whole (a full disk leaves it short).
    """
    data = text.encode("utf-8", "surrogateescape")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def read_text(path: str, limit_bytes: int = 65536) -> str | None:
    """Give at most the first `limit_bytes` of a file; None if there is no such file.

    Raises:
        OSError: For any other reason why it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, limit_bytes).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def make_dir(path: str) -> bool:
    """Make a folder that only the user can enter, with its parents; tell whether it is new.

    Raises:
        OSError: If it cannot be made, or something else has its name.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    return True
