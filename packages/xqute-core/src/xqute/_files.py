"""Small files, read and written at once with few system calls; in a cloud, with one request."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from . import _clouds
from ._clouds import soon

__all__ = [
    "absolute",
    "check_way",
    "freshen",
    "make_dir",
    "make_private",
    "may_pass",
    "read_text",
    "remove",
    "write_soon",
    "write_text",
]

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
#: What a disk says when it takes nothing just now: full, over quota, read-only, or out of reach.
_PASSING: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}


def absolute(path: str | os.PathLike[str]) -> str:
    """Give a path as text that means the same wherever this process, or a job, goes; URIs do."""
    text = os.fspath(path) if isinstance(path, Path) else str(path)
    return text.rstrip("/") if "://" in text else os.path.abspath(text)


def may_pass(exc: BaseException | None) -> bool:
    """Whether what a disk has refused it may take later."""
    return isinstance(exc, OSError) and exc.errno in _PASSING


def freshen(folder: str) -> None:
    """Have the next listing of a folder tell what is there now, not what was there a while ago.

    Network file systems answer listings from a cache, until something is made there from here.
    Where nothing can be, the next listing is as good as the cache.
    """
    probe = f"{folder}/.probe-{os.getpid()}"
    with suppress(OSError):
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        os.unlink(probe)


def write_text(path: str, text: str, mode: int = 0o600) -> None:
    """Replace `path`; bytes that are no text travel as surrogates.

    What is there is not changed but replaced at once by the whole: somebody may be reading it, or
    be about to, bash a script for one.

    Raises:
        OSError: If it could not be written whole. What was there before is then still there; a file
            that is new may be short (on a full disk).
    """
    data = text.encode("utf-8", "surrogateescape")
    if _clouds.is_far(path):
        _clouds.put(path, data)
        return
    try:
        _write_new(path, data, mode)
    except FileExistsError:
        part = f"{path}.{os.urandom(8).hex()}"
        try:
            _write_new(part, data, mode)
            os.rename(part, path)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(part)
            raise


def _write_new(path: str, data: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        while data:
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def write_soon(path: str, text: str) -> None:
    """Replace `path`: now or, in a cloud, by a thread, so that nobody waits for the network.

    Raises:
        OSError: If a local one could not be written whole.
    """
    if _clouds.is_far(path):
        soon.put_soon(path, text.encode("utf-8", "surrogateescape"))
    else:
        write_text(path, text)


def read_text(path: str, limit_bytes: int = 65536) -> str | None:
    """Give at most the first `limit_bytes` of a file; None if there is no such file.

    Raises:
        OSError: For any other reason why it cannot be read.
    """
    if _clouds.is_far(path):
        data = _clouds.get(path, limit_bytes)
        return None if data is None else data.decode("utf-8", "surrogateescape")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return os.read(fd, limit_bytes).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def make_dir(path: str) -> bool:
    """Make a folder that only the user can enter, with its parents.

    One that is there is taken if it is the user's own; from then on nobody else may write there.

    A cloud has no folders: nothing is done there.

    Returns:
        Whether it was made; False: it was there.

    Raises:
        OSError: If it cannot be made, or what has its name is somebody else's, or no folder.
    """
    if _clouds.is_far(path):
        return False
    try:
        _take_dir(path)
    except FileNotFoundError:
        try:
            _mkdir(path)
        except FileExistsError:  # it has come to be just now
            _take_dir(path)
        else:
            return True
    return False


def _mkdir(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError:
        parent = os.path.dirname(path)
        if parent in ("", path):
            raise
        with suppress(FileExistsError):  # it has come to be just now, or can have no folders in it
            _mkdir(parent)
        os.mkdir(path, 0o700)


def _take_dir(path: str) -> None:
    about = os.lstat(path)
    if not stat.S_ISDIR(about.st_mode):
        what = "a symbolic link" if stat.S_ISLNK(about.st_mode) else "no folder"
        raise FileExistsError(errno.EEXIST, f"It is {what}", path)
    # A file server, or a container, may give files another owner than their maker.
    if about.st_uid != os.geteuid() and about.st_uid != _uid_of_new(os.path.dirname(path)):
        raise PermissionError(errno.EPERM, f"It belongs to {_user(about.st_uid)}", path)
    _allow_at_most(path, about.st_mode, ~_OTHERS_WRITE)


def make_private(path: str) -> None:
    """Have nobody but the user enter a folder that is the user's.

    Raises:
        OSError: If it is not there.
    """
    _allow_at_most(path, os.stat(path).st_mode, stat.S_IRWXU)


def _allow_at_most(path: str, mode: int, most: int) -> None:
    wanted = stat.S_IMODE(mode) & most
    if wanted != stat.S_IMODE(mode):
        with suppress(OSError):  # file systems that know no modes give every folder the same
            os.chmod(path, wanted)


def check_way(path: str) -> None:
    """Make sure that nobody else has a say in where `path` leads to, by way of a shared folder.

    Whoever may write to a sticky folder, as all may to /tmp, can make there what others will come
    to use. So what is found in one must belong to this user, to root, or to the folder's owner.
    (Links are followed by the same rule under Linux's ``protected_symlinks``.)

    Raises:
        PermissionError: If it does not.
    """
    for way in {os.path.abspath(path), os.path.realpath(path)}:
        parts = way.split("/")
        for n in range(1, len(parts)):
            parent, here = "/".join(parts[:n]) or "/", "/".join(parts[: n + 1])
            try:
                folder, about = os.stat(parent), os.lstat(here)
            except FileNotFoundError:
                break
            is_sticky = folder.st_mode & stat.S_ISVTX
            is_shared = is_sticky and folder.st_mode & _OTHERS_WRITE
            if is_shared and about.st_uid not in (os.geteuid(), 0, folder.st_uid):
                why = f"In {parent}, which others may write to, it belongs to {_user(about.st_uid)}"
                raise PermissionError(errno.EPERM, why, here)


def _uid_of_new(folder: str) -> int:
    """Whom the file system gives what this process makes in a folder."""
    import tempfile

    probe = tempfile.mkdtemp(prefix=".xqute-", dir=folder)
    try:
        return os.lstat(probe).st_uid
    finally:
        os.rmdir(probe)


def _user(uid: int) -> str:
    import pwd

    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"


def remove(path: str) -> None:
    """Remove a file; one that is not there is no error.

    Raises:
        OSError: If it stays.
    """
    if _clouds.is_far(path):
        _clouds.delete([path])
        return
    with suppress(FileNotFoundError):
        os.unlink(path)
