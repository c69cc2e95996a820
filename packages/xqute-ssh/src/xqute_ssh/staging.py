"""Jobs whose files are not shared: what goes where, and the driver's copy of a job's folder."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from xqute.errors import InvalidJobError
from xqute.path import SpecPath

if TYPE_CHECKING:
    from .entry import Entry

__all__ = [
    "Transfer",
    "mirror_end",
    "mirror_start",
    "plan_transfers",
    "return_lease",
    "take_lease",
    "write_at",
]

_RUNNING = b"4"


class Transfer(NamedTuple):
    """A file, or a folder with all that is in it, here and there."""

    local: str
    remote: str


def plan_transfers(
    paths: Iterable[str | os.PathLike[str]], *, workdir: SpecPath, cwd: str
) -> list[Transfer]:
    """Decide where declared inputs and outputs are on both sides.

    What is in the workdir is in the server's; a `SpecPath` says itself where it is there. Any other
    absolute path is the same on both sides. A relative one is relative to the driver's working
    directory here, and to the job's there.

    Args:
        paths: What was declared.
        workdir: The workdir, with its mounted side.
        cwd: The job's working directory, absolute.

    Raises:
        InvalidJobError: If a relative path leads out of the working directory.
    """
    plan = []
    for path in paths:
        text = str(path)  # asked for a local copy, a path in a cloud would be fetched
        if "://" in text:
            raise InvalidJobError(f"{text}: inputs and outputs are files of this machine")
        local = os.path.abspath(text)
        if isinstance(path, SpecPath) and path.is_mounted():
            remote = str(path.mounted)
        elif not os.path.isabs(text):
            inside = os.path.normpath(text)
            if inside.split("/")[0] == "..":
                raise InvalidJobError(f"{text}: a relative path of a job stays in its directory")
            remote = os.path.join(cwd, inside)
        elif os.path.commonpath([local, str(workdir)]) == str(workdir):
            remote = os.path.join(str(workdir.mounted), os.path.relpath(local, str(workdir)))
        else:
            remote = text
        plan.append(Transfer(local, os.path.normpath(remote)))
    return plan


def take_lease(entry: Entry) -> bool:
    """Take the start claim here, for the server: from now on nobody else can revoke it.

    True: it may be sent. False: the attempt was revoked.

    Raises:
        OSError: If it cannot be taken.
    """
    path = entry.local("start")
    try:
        _create(path, b"")
    except FileExistsError:
        with open(path, "rb") as file:
            return not file.read(8).startswith(b"revoked")
    return True


def return_lease(entry: Entry) -> None:
    """Give the start claim back: the server has not started the attempt, and never will."""
    with suppress(FileNotFoundError):
        os.unlink(entry.local("start"))


def write_at(path: str, at: int, data: bytes) -> None:
    """Write `data`, which begins at byte `at` of a file; what is there already stays."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while data:
            n_written = os.pwrite(fd, data, at)
            data, at = data[n_written:], at + n_written
    finally:
        os.close(fd)


def mirror_start(entry: Entry) -> None:
    """Say here that it runs, for those who read `job.status`."""
    with suppress(FileExistsError):
        _create(entry.local("status"), _RUNNING)


def mirror_end(entry: Entry) -> None:
    """Write what came with an attempt's end: outputs first, the end claim last.

    Whoever reads the claim finds all the rest, also if the driver dies in between. If the end is
    claimed here already, that word stands.
    """
    for name in ("stdout", "stderr", "start"):
        told = entry.told.get(name)
        if told is not None:
            write_at(entry.local(name), 0, bytes(told))
            if name not in entry.unfinished:
                os.truncate(entry.local(name), len(told))
    end = bytes(entry.told.get("end", b""))
    if not entry.is_home and _mirror_words(entry, end):
        try:
            _create(entry.local("end"), end)
        except FileExistsError:  # just now
            with open(entry.local("end"), "rb") as file:
                _mirror_words(entry, file.read())


def _mirror_words(entry: Entry, end: bytes) -> bool:
    """Write exit code and status as an end claim says them; False: it says none."""
    rc, _, rest = end.partition(b" ")
    status = rest.partition(b" ")[0]
    if rc and status:
        write_at(entry.local("rc"), 0, rc)
        os.truncate(entry.local("rc"), len(rc))
        write_at(entry.local("status"), 0, status)
    return bool(rc and status)


def _create(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
