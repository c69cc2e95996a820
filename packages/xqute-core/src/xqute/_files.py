"""Small files, read and written at once with few system calls."""

from __future__ import annotations

import os

__all__ = ["make_dir", "read_text", "write_text"]


def write_text(path: str, text: str, mode: int = 0o600) -> None:
    """Replace `path`; bytes that are no text travel as surrogates.

    What is there is not changed but removed: somebody may be reading it, bash a script for one.

    Raises:
        OSError: If it could not be written whole (a full disk leaves it short).
    """
    data = text.encode("utf-8", "surrogateescape")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        os.unlink(path)
        fd = os.open(path, flags, mode)
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


def make_dir(path: str) -> None:
    """Make a folder that only the user can enter, with its parents; what is there stays.

    Raises:
        OSError: If it cannot be made, or something else has its name.
    """
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    except FileNotFoundError:
        os.makedirs(path, 0o700, exist_ok=True)
