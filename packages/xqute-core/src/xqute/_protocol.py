"""What a job's wrapper and the driver tell each other through files: claims, records, events.

Every attempt has two claims, files that only one process can create, named after the attempt's
`tag`. The *start claim* is created
by the wrapper, which may then run the command, or by the driver, after which that attempt can never
start. The *end claim* is created by whoever settles how the attempt ended; nobody else writes
`job.rc` and `job.status` then. A reader may find a file that is still empty: its writer has created
it and not yet filled it, or the disk is full. Text that is not exactly what the other side writes
is read as nothing at all, never as a guess.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Final, NamedTuple

from . import _clouds

__all__ = [
    "EndRecord",
    "Event",
    "StartClaim",
    "boot_id",
    "claim_end",
    "claim_exists",
    "claim_is_alive",
    "end_claim_path",
    "event_name",
    "parse_event_name",
    "process_start_ticks",
    "process_state",
    "read_end_record",
    "read_start_claim",
    "revoke_start",
    "sort_claims",
    "start_claim_path",
    "start_time",
    "write_end",
]

_CLAIMS: Final = ("job.start.", "job.end.", "job.restarts.")

# One read is enough for every file here; a longer one is not ours.
_READ_BYTES: Final = 4096

# Patterns are compiled when they are first used, which `re` remembers: importing stays cheap.
_NUMBER: Final = r"0|[1-9][0-9]{0,9}"
_RC: Final = r"0|-?[1-9][0-9]{0,9}"
_START_LINE: Final = rb"([^ \n]+) ([^ \n]+) (0|[1-9][0-9]{0,9}) (-|0|[1-9][0-9]{0,19}) ([^ \n]+)\n"
_REVOKED_LINE: Final = rb"revoked [^ \n]+\n"
_END_LINE: Final = rf"({_RC}) ([67]) ([\w.-]*)\n".encode()
_EVENT_NAME: Final = (
    rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})\.([467])\.({_RC})\.(0|[1-9][0-9]{{0,14}})"
    r"(?:\.([0-9A-Za-z]{8,16}))?"
)
_CAUSE: Final = r"[A-Za-z0-9_.-]*"


class StartClaim(NamedTuple):
    """Who holds an attempt's start: the wrapper's identity, or, `revoked`, the driver."""

    host: str
    boot_id: str  # "-" where the host cannot tell
    pid: int  # 0 where jobs have others than their host
    start_ticks: int | None  # of the wrapper, as in /proc/<pid>/stat; None where there is no /proc
    native_id: str  # the backend's own id of the job; "-" where it has none
    revoked: bool


class EndRecord(NamedTuple):
    """How an attempt ended, as the winner of its end claim says."""

    rc: int
    status: int  # 6 finished, 7 failed
    cause: str  # "", TERMINATED, TIMEOUT, SETUP, NOT_STARTED, or the driver's own word


class Event(NamedTuple):
    """One change of one job, as told by the name of a file in the event spool.

    Where reading the claims costs a request each, the name also says of which run the attempt is:
    then it tells the truth without them, since the wrapper leaves it after it has won the claim.
    """

    index: int  # type: ignore[assignment]  # in the place of tuple.index, which nobody needs here
    attempt: int
    restart: int
    status: int  # 4 running, 6 finished, 7 failed
    rc: int  # -1 while it runs
    epoch_ms: int
    run: str = ""  # what the tag of the attempt's claims begins with


_REVOKED: Final = StartClaim("", "", 0, None, "", revoked=True)


def start_claim_path(metadir: str, tag: str) -> str:
    """Where the start of this attempt is claimed."""
    return f"{metadir}/job.start.{tag}"


def end_claim_path(metadir: str, tag: str) -> str:
    """Where the end of this attempt is claimed."""
    return f"{metadir}/job.end.{tag}"


def claim_exists(path: str) -> bool:
    """Whether somebody holds this claim, also one whose line is not there yet.

    Raises OSError when that cannot be known: a folder that cannot be read proves nothing.
    """
    if _clouds.is_far(path):
        return _clouds.exists(path)
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def sort_claims(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Of a job's files, give the claims of attempts that have ended, and those of others.

    Where the backend may start an attempt again, each of its starts has claims of its own, and the
    attempt a mark that says so; all end with the attempt.
    """
    claims = {name for name in names if name.startswith(_CLAIMS)}
    ended = {name for name in claims if f"job.end.{name.split('.')[2]}" in claims}
    return ended, claims - ended


def read_start_claim(metadir: str, tag: str) -> StartClaim | None:
    """Who holds the start; None: nobody, or the line is not (wholly) there: ask `claim_exists`."""
    text = _read(start_claim_path(metadir, tag))
    # The wrapper may append below its line; a line without its end is not whole.
    line = text[: text.find(b"\n") + 1]
    if match := re.fullmatch(_START_LINE, line):
        host, boot_id, pid, ticks, native_id = map(os.fsdecode, match.groups())
        start_ticks = None if ticks == "-" else int(ticks)
        return StartClaim(host, boot_id, int(pid), start_ticks, native_id, revoked=False)
    return _REVOKED if re.fullmatch(_REVOKED_LINE, line) else None


def start_time(metadir: str, tag: str) -> float | None:
    """When the attempt started, in seconds since the epoch by its file's clock; None: not known."""
    path = start_claim_path(metadir, tag)
    try:
        if _clouds.is_far(path):
            found = _clouds.look(path)
            return None if found is None else found.written_s
        return os.stat(path).st_mtime
    except OSError:
        return None


def read_start_claims(metadir: str) -> list[tuple[StartClaim, bool]]:
    """Who holds the starts of a job's attempts, and whether each has ended; not the revoked."""
    try:
        names = set(_clouds.names(metadir) if _clouds.is_far(metadir) else os.listdir(metadir))
    except FileNotFoundError:
        return []
    tags = [name.removeprefix("job.start.") for name in names if name.startswith("job.start.")]
    claims = [(read_start_claim(metadir, tag), f"job.end.{tag}" in names) for tag in tags]
    return [(claim, ended) for claim, ended in claims if claim is not None and not claim.revoked]


def read_end_record(metadir: str, tag: str) -> EndRecord | None:
    """How the attempt ended; None: not settled, or the line is not (wholly) there."""
    match = re.fullmatch(_END_LINE, _read(end_claim_path(metadir, tag)))
    if match is None:
        return None
    rc, status, cause = match.groups()
    return EndRecord(int(rc), int(status), cause.decode())


def revoke_start(metadir: str, tag: str, why: str) -> bool:
    """Take the start claim, so that this attempt can never start.

    True: taken. False: somebody has it, most likely the wrapper; nothing is changed. OSError: it
    cannot be created, and whether the attempt starts is not decided.
    """
    return _claim(start_claim_path(metadir, tag), f"revoked {'_'.join(why.split()) or '-'}\n")


def claim_end(metadir: str, tag: str, rc: int, status: int, cause: str) -> bool:
    """Take the end claim with this record; the winner then writes `job.rc` and `job.status`.

    True: taken. False: somebody else has it and their word stands. OSError: it cannot be created.
    ValueError: a status that is no end, or a cause that is not one word.
    """
    if status not in (6, 7):
        raise ValueError(f"not a final status: {status}")
    if not re.fullmatch(_CAUSE, cause):
        raise ValueError(f"a cause is one word of letters, digits, '_', '.', '-': {cause!r}")
    return _claim(end_claim_path(metadir, tag), f"{rc} {status} {cause}\n")


def write_end(metadir: str, tag: str, rc: int, status: int, cause: str) -> bool:
    """`claim_end` and, if it was won, `job.rc` and then `job.status`.

    True: this call settled the end. OSError after the claim was won: the record stands, the files
    could not be written.
    """
    if not claim_end(metadir, tag, rc, status, cause):
        return False
    _write(f"{metadir}/job.rc", str(rc), os.O_TRUNC)
    # One byte over one byte: a reader sees the old status or the new one, never an empty file.
    _write(f"{metadir}/job.status", str(status), 0)
    return True


def parse_event_name(name: str) -> Event | None:
    """The event that a file of this name tells; None for any other name."""
    match = re.fullmatch(_EVENT_NAME, name)
    if match is None:
        return None
    *numbers, run = match.groups()
    index, attempt, restart, status, rc, epoch_ms = map(int, numbers)
    return Event(index, attempt, restart, status, rc, epoch_ms, run or "")


def event_name(event: Event) -> str:
    """The file name that tells this event."""
    return ".".join(map(str, event if event.run else event[:-1]))


@cache
def boot_id() -> str:
    """This boot of this host, "-" where there is no /proc."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return "-"


def process_start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None: no such process, or no /proc."""
    stat = _process_stat(pid)
    return int(stat[19]) if stat else None


def process_state(pid: int) -> str | None:
    """The state letter of /proc/<pid>/stat ("Z" a zombie); None: no such process, or no /proc."""
    stat = _process_stat(pid)
    return stat[0].decode() if stat else None


def claim_is_alive(claim: StartClaim) -> bool | None:
    """Whether the wrapper that holds this claim still runs; None: not to be known from here.

    Nor is it where jobs have pids of their own: see `Scheduler.has_own_pids`.
    """
    if claim.revoked:
        return False
    if claim.host != os.uname().nodename:
        return None
    if claim.boot_id != boot_id():
        # Another boot of this very host, if both are known.
        return None if "-" in (claim.boot_id, boot_id()) else False
    return _process_is_alive(claim.pid, claim.start_ticks) if claim.pid else None


def _process_is_alive(pid: int, start_ticks: int | None) -> bool | None:
    stat = _process_stat(pid)
    if stat and start_ticks is not None:
        return int(stat[19]) == start_ticks and stat[0] not in (b"Z", b"X")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return None


def _process_stat(pid: int) -> list[bytes] | None:
    """Fields 3 and on of /proc/<pid>/stat (field 2 may hold spaces and parentheses)."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except ProcessLookupError:  # it ended between open and read
        return None
    return text.rpartition(b") ")[2].split() or None


def _read(path: str) -> bytes:
    """The file's beginning; empty where there is no such file."""
    if _clouds.is_far(path):
        return _clouds.get(path, _READ_BYTES) or b""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return os.read(fd, _READ_BYTES)
    finally:
        os.close(fd)


def _write(path: str, text: str, flags: int) -> None:
    if _clouds.is_far(path):
        _clouds.put(path, text.encode())
        return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _claim(path: str, line: str) -> bool:
    """Create the file exclusively and say `line` in it. False: it is there already."""
    if _clouds.is_far(path):
        return _claim_far(path, line.encode("utf-8", "surrogateescape"))
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    # Created is claimed: a disk too full for the line does not give the claim back.
    with suppress(OSError):
        try:
            os.write(fd, line.encode("utf-8", "surrogateescape"))
        finally:
            os.close(fd)
    return True


def _claim_far(uri: str, line: bytes) -> bool:
    """Create the object only if there is none, which the cloud decides.

    A request that was repeated after a lost answer finds what it has made itself.
    """
    return _clouds.create(uri, line) or _clouds.get(uri, _READ_BYTES) == line
