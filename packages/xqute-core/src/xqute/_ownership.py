"""Who owns a workdir: a record that one process at a time can have there, and when it is void.

The folder ``<workdir>/.run/owner`` holds

- ``flock``, locked with flock(2) as long as the owner lives, where the file system can do that;
- ``held.<n>``, the owner's record, touched every few seconds; or ``free.<n>``, if there is none.

The highest number counts. It is never removed but by who has a higher one, and each is created
exclusively: of those who find the same dead owner, one gets the next number. That decides wherever
exclusive creation does, and needs no lock; flock adds that the owner is known to be alive, whatever
keeps it from touching its record, and known to be dead, at once, by all who share its kernel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shlex
import sys
import time
from contextlib import suppress
from functools import cache
from typing import Final, NamedTuple, Self

from . import _protocol
from .errors import WorkdirLockedError

__all__ = ["BEAT_S", "STALE_S", "Holder", "Owner", "Ownership", "find_holder"]

#: Seconds between two signs of life of an owner, and without one until others may take its place.
BEAT_S: Final = 5.0
STALE_S: Final = 60.0

_ENTRY: Final = r"(held|free)\.([1-9][0-9]{0,17})"
_WORD: Final = r"([!-~]+)"
_RECORD: Final = (
    rf"{_WORD} {_WORD} {_WORD} "
    r"([1-9][0-9]{0,9}) (-|0|[1-9][0-9]{0,19}) ([0-9]{1,12}) (flock|-)\n"
)
_RECORD_BYTES: Final = 1024
_UNKNOWN: Final = "a process that has not said who it is"
_SAFE: Final = os.O_CLOEXEC | os.O_NOFOLLOW
#: What flock says where the file system, or its server, has no locks.
_NO_FLOCK: Final = frozenset((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL))
#: What link says where the file system has none.
_NO_LINKS: Final = frozenset((errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS))
#: Whoever locks or creates first and then says who it is needs microseconds, of its own time.
_LOOKS, _LOOK_PAUSE_S = 20, 0.001
#: How long it is waited for to say so: on a busy machine it may not have its turn for a while.
_PATIENCE_S = 1.0


class Owner(NamedTuple):
    """A process that owns a workdir, as it has written of itself."""

    host: str
    boot_id: str  # "-" where the host cannot tell
    namespace: str  # the one that its process id is of; "-" where there are none
    pid: int
    start_ticks: int | None  # as in /proc/<pid>/stat; None where there is no /proc
    since_s: int  # since the epoch, by its own clock
    has_flock: bool

    @classmethod
    def of_this_process(cls, *, has_flock: bool) -> Self:
        """Give what this process has to say of itself, now."""
        ticks = _protocol.process_start_ticks(os.getpid())
        who = (_host(), _protocol.boot_id(), _namespace(), os.getpid(), ticks)
        return cls(*who, int(time.time()), has_flock)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since_s))
        return f"pid {self.pid} on {self.host} since {since}"

    def is_here(self) -> bool:
        """Whether it was started under the kernel that runs now."""
        if "-" in (self.boot_id, _protocol.boot_id()):
            return self.boot_id == _protocol.boot_id() and self.host == _host()
        return self.boot_id == _protocol.boot_id()

    def is_alive(self) -> bool | None:
        """Whether its process still runs; None: not to be known from here."""
        if not self.is_here() or self.namespace != _namespace():
            return None
        claim = _protocol.StartClaim(
            self.host, self.boot_id, self.pid, self.start_ticks, "-", revoked=False
        )
        return _protocol.claim_is_alive(claim)


class Holder(NamedTuple):
    """Who is found to hold a workdir.

    Attributes:
        number: Of its record.
        owner: What that says; None: nothing yet.
        age_s: Seconds since its last sign of life, by the clock of the file server.
    """

    number: int
    owner: Owner | None
    age_s: float

    def __str__(self) -> str:
        return _UNKNOWN if self.owner is None else str(self.owner)

    def is_dead(self, *, has_flock: bool) -> bool:
        """Whether the owner is gone, or must be taken for gone.

        Args:
            has_flock: Whether the caller has the flock, so that no owner under this kernel has it.
        """
        owner = self.owner
        if owner is not None and owner.is_here():
            alive = False if has_flock and owner.has_flock else owner.is_alive()
            if alive is not None:
                return not alive
        elif owner is not None and owner.host == _host() and self.age_s > _uptime_s():
            return True  # the last that was heard of it is from before this host was booted
        return self.age_s > STALE_S


class Ownership:
    """A workdir that belongs to this process, until `release`."""

    def __init__(self, folder: str, number: int, flock: int) -> None:
        self._folder = folder
        self._number = number
        self._flock = flock

    @classmethod
    def take(cls, folder: str, *, force: bool = False) -> Self:
        """Become the owner.

        Args:
            folder: ``<workdir>/.run/owner``; it is there.
            force: Whoever the owner is. It notices at its next beat.

        Raises:
            WorkdirLockedError: If somebody owns it.
            OSError: If the folder cannot be used.
        """
        flock, has_flock = _take_flock(folder, force=force)
        try:
            number = _take_record(folder, flock, has_flock=has_flock, force=force)
        except BaseException:
            os.close(flock)
            raise
        return cls(folder, number, flock)

    def beat(self) -> bool:
        """Give a sign of life; False: the workdir is not ours any more.

        Raises:
            OSError: If neither can be done now.
        """
        try:
            entries = _entries(self._folder)
            if max(number for number, _ in entries) > self._number:
                return False
            os.utime(f"{self._folder}/held.{self._number}")
        except (FileNotFoundError, ValueError):  # all of it was removed
            return False
        return True

    def release(self) -> None:
        """Own it no more. If somebody has taken it meanwhile, it stays theirs.

        Raises:
            OSError: If that cannot be written down; the flock is given back all the same.
        """
        held = f"{self._folder}/held.{self._number}"
        try:
            with suppress(FileNotFoundError):
                os.rename(held, f"{self._folder}/free.{self._number}")
        finally:
            # A forked process may have the descriptor too: closing ours would not unlock.
            with suppress(OSError):
                fcntl.flock(self._flock, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Close what only the owner has: for a process that was forked off it."""
        os.close(self._flock)


def find_holder(folder: str) -> Holder | None:
    """Tell who has a record there, dead or alive; None: nobody. It is only looked at.

    Raises:
        OSError: If the folder cannot be read.
    """
    try:
        return _look(folder)[1]
    except FileNotFoundError:
        return None


def _look(folder: str) -> tuple[int, Holder | None]:
    """Give the number that counts, and who holds it."""
    for _ in range(_LOOKS):
        now_ns = _server_time_ns(folder)  # a file made here also makes the listing a fresh one
        number, kind = max(_entries(folder), default=(0, "free"))
        if kind == "free":
            return number, None
        try:
            fd = os.open(f"{folder}/held.{number}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue  # it was given back just now
        try:
            age_s = (now_ns - os.fstat(fd).st_mtime_ns) / 1e9
            holder = Holder(number, _parse_record(os.read(fd, _RECORD_BYTES)), age_s)
        finally:
            os.close(fd)
        if holder.owner is not None or age_s > 1:
            break
        time.sleep(_LOOK_PAUSE_S)
    else:
        return number, Holder(number, None, 0.0)
    return number, holder


def _entries(folder: str) -> set[tuple[int, str]]:
    found = (re.fullmatch(_ENTRY, name) for name in os.listdir(folder))
    return {(int(match[2]), match[1]) for match in found if match}


def _take_flock(folder: str, *, force: bool) -> tuple[int, bool]:
    """Give a descriptor, and whether it has the flock: not every file system can do that."""
    path = f"{folder}/flock"
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _SAFE, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, fd):
                return fd, True
        except BlockingIOError:
            if not force:
                os.close(fd)
                raise _locked_error(folder, _await_holder(folder)) from None
            _unlink(path)  # who has locked it has locked a file that nobody finds any more
        except OSError as exc:
            if exc.errno in _NO_FLOCK:
                return fd, False
            os.close(fd)
            raise
        os.close(fd)


def _take_record(folder: str, flock: int, *, has_flock: bool, force: bool) -> int:
    for _ in range(_LOOKS):
        number, holder = _look(folder)
        has_flock = has_flock and _is_at(f"{folder}/flock", flock)  # else it was taken by force
        if not (force or holder is None or holder.is_dead(has_flock=has_flock)):
            raise _locked_error(folder, holder)
        number += 1
        path = f"{folder}/held.{number}"
        try:
            _create_record(folder, path, has_flock=has_flock)
        except FileExistsError:
            continue  # somebody else was faster
        try:
            others = _entries(folder) - {(number, "held")}
            if all(other < number for other, _ in others):
                for other, kind in others:
                    _unlink(f"{folder}/{kind}.{other}")
                return number
            # What was seen was long ago: others have come, and perhaps gone.
            _unlink(path)
        except OSError:
            _unlink(path)
            raise
    raise _locked_error(folder, _await_holder(folder))


def _await_holder(folder: str) -> Holder | None:
    """Give who has just taken it: whoever has, is about to say so."""
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        holder = find_holder(folder)
        is_said = holder is not None and not holder.is_dead(has_flock=False)
        if is_said or time.monotonic() > until_s:
            return holder
        time.sleep(_LOOK_PAUSE_S)


def _create_record(folder: str, path: str, *, has_flock: bool) -> None:
    """Make a record exclusively, whole from the first: who is killed here has made none.

    Raises:
        FileExistsError: If it is there already.
    """
    part = f"{folder}/.new-{secrets.token_hex(8)}"
    if _write_new(part, has_flock=has_flock, link=path):
        return
    _write_new(path, has_flock=has_flock)


def _write_new(path: str, *, has_flock: bool, link: str | None = None) -> bool:
    """Make a record, or, to be removed again, one that gets its name by a link.

    False: there are no links.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600)
    is_made = False
    try:
        _write_record(fd, has_flock=has_flock)
        if link is not None:
            os.link(path, link)
        is_made = True
    except OSError as exc:
        if link is None or exc.errno not in _NO_LINKS:
            raise
    finally:
        os.close(fd)
        if link is not None or not is_made:
            _unlink(path)
    return is_made


def _write_record(fd: int, *, has_flock: bool) -> None:
    *who, ticks, since_s, _ = Owner.of_this_process(has_flock=has_flock)
    words = (*who, "-" if ticks is None else ticks, since_s, "flock" if has_flock else "-")
    data = os.fsencode(f"{' '.join(map(str, words))}\n")
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.utime(fd)  # by the clock of the file server


def _parse_record(data: bytes) -> Owner | None:
    match = re.fullmatch(_RECORD, os.fsdecode(data))
    if match is None:
        return None
    host, boot_id, namespace, pid, ticks, since_s, flock = match.groups()
    start_ticks = None if ticks == "-" else int(ticks)
    has_flock = flock == "flock"
    return Owner(host, boot_id, namespace, int(pid), start_ticks, int(since_s), has_flock)


def _locked_error(folder: str, holder: Holder | None) -> WorkdirLockedError:
    workdir = os.path.dirname(os.path.dirname(folder))
    text = f"Another run is at work in {workdir}: {holder or _UNKNOWN}"
    if holder is None or holder.owner is None:
        pass
    elif holder.is_dead(has_flock=False):
        text += ", or what it has left behind"
    elif not holder.owner.is_here():
        text += f", last heard of {max(holder.age_s, 0):.0f} s ago"
        text += f" (if it is gone for good: xqute unlock {shlex.quote(workdir)})"
    return WorkdirLockedError(text)


def _server_time_ns(folder: str) -> int:
    """What time it is for whoever keeps the times of files there."""
    path = f"{folder}/.now-{secrets.token_hex(8)}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE, 0o600)
    except OSError:
        return time.time_ns()  # who may not write there only wants to look
    try:
        os.utime(fd)
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)
        os.unlink(path)


def _unlink(path: str) -> None:
    with suppress(FileNotFoundError):  # who comes after removes what is out of date
        os.unlink(path)


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _host() -> str:
    return "_".join(os.uname().nodename.split()) or "-"


@cache
def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return "-"


def _uptime_s() -> float:
    """Seconds since this host was booted, those in which it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()
