"""Folders of this machine that stand for folders in a cloud, and their way there."""

from __future__ import annotations

import os
from typing import Final

from . import upload

__all__ = ["local_place", "staging_folder", "upload_folder"]

#: Uploaded after all others: who sees them finds the rest.
_LAST: Final = ("job.rc", "job.status")


def local_place(uri: str, root: str | os.PathLike[str] | None = None) -> str:
    """Give the folder of this machine for what belongs to a folder in a cloud.

    Args:
        uri: That folder.
        root: Below which folder; None: the user's cache.
    """
    # Imported late: not needed to `import xqute`.
    from hashlib import blake2b

    if root is None:
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        root = f"{home}/xqute"
    return f"{os.path.abspath(root)}/{blake2b(uri.encode(), digest_size=8).hexdigest()}"


def staging_folder(workdir: str, root: str | os.PathLike[str] | None) -> str:
    """Give where jobs work that do not see their workdir, which is in a cloud."""
    return f"{local_place(workdir, root)}/staging"


def upload_folder(local: str, uri: str) -> None:
    """Upload all files below a local folder; of links, what they lead to if that is a file.

    Raises:
        OSError: If one could not be; others may have been.
    """
    for folder, _, names in os.walk(local, topdown=False):
        below = os.path.relpath(folder, local)
        place = uri if below == "." else f"{uri}/{below}"
        for name in sorted(names, key=_order):
            if os.path.isfile(f"{folder}/{name}"):
                upload(f"{place}/{name}", f"{folder}/{name}")


def _order(name: str) -> int:
    return _LAST.index(name) + 1 if name in _LAST else 0
