"""Letting one other user into a job's folder, where jobs run as somebody else."""

from __future__ import annotations

import os
import struct
from typing import Final

from xqute import logger

__all__ = ["find_host_uid", "open_file", "open_folder"]

_READ, _WRITE, _ENTER = 4, 2, 1
_ALL: Final = _READ | _WRITE | _ENTER
#: Access control lists as the kernel keeps them, see acl(5) and linux/posix_acl_xattr.h.
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_OWNER, _USER, _GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20
_NOBODY: Final = 0xFFFFFFFF


def open_folder(path: str, uid: int | None) -> None:
    """Let a user (None: who that is here is not known) use a folder, and us what is made there.

    Raises:
        OSError: If it is not ours.
    """
    if uid is not None and _set_acl(path, "access", {uid: _ALL}, _ALL):
        _set_acl(path, "default", {os.getuid(): _ALL, uid: _ALL}, _ALL)
    else:
        os.chmod(path, 0o777)  # noqa: S103  # there is no way to name the user


def open_file(path: str, uid: int | None) -> None:
    """Let a user read a file.

    Raises:
        OSError: If it is not ours.
    """
    if uid is None or not _set_acl(path, "access", {uid: _READ}, _READ | _WRITE):
        os.chmod(path, 0o644)


def find_host_uid(uid: int, subuid_file: str = "/etc/subuid") -> int | None:
    """Give the id on the host of a user in a rootless engine of ours; None: it is not known.

    See subuid(5): user 0 is ourselves, and the others follow from the first of our range on.
    """
    import pwd

    if uid == 0:
        return os.getuid()
    try:
        names = {str(os.getuid()), pwd.getpwuid(os.getuid()).pw_name}
        with open(subuid_file, encoding="ascii") as file:
            ranges = [line.strip().split(":") for line in file]
    except (KeyError, OSError):
        return None
    return next((int(first) + uid - 1 for name, first, _ in ranges if name in names), None)


def _set_acl(path: str, kind: str, users: dict[int, int], owner: int) -> bool:
    """Give rights to these users and the owner alone; False: this file system cannot."""
    entries = [(_OWNER, owner, _NOBODY)]
    entries += [(_USER, rights, uid) for uid, rights in sorted(users.items())]
    entries += [(_GROUP, 0, _NOBODY), (_MASK, _ALL, _NOBODY), (_OTHERS, 0, _NOBODY)]
    value = _VERSION + b"".join(_ENTRY.pack(*entry) for entry in entries)
    try:
        os.setxattr(path, f"system.posix_acl_{kind}", value)
    except OSError as exc:
        logger.debug("%s is opened to all users: it has no access control lists (%s)", path, exc)
        return False
    return True
