"""Process groups and sessions: who is in them, and how they end."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
from collections.abc import Callable

from .. import _protocol
from ..utils import logger

__all__ = [
    "is_alive",
    "is_anothers",
    "is_of",
    "kill_sessions",
    "members_of",
    "runs_script",
    "session_of",
    "signal_group",
]

_FOLDER = b"XQUTE_JOB_METADIR="


def signal_group(pgid: int, sig: signal.Signals) -> None:
    """Send a signal to a process group; one that is not there is no error."""
    try:
        os.killpg(pgid, sig)
    except ProcessLookupError:
        pass
    except PermissionError as exc:
        logger.warning("Process group %d cannot be signalled: %s", pgid, exc)


def kill_sessions(
    sessions: set[int], may_kill: Callable[[int, int], bool] | None = None
) -> set[int]:
    """KILL every process of the given sessions, until a look finds none that is alive.

    Where there is no /proc, only the groups that have the sessions' names are reached.

    Args:
        sessions: The ids of the sessions.
        may_kill: Tells of a process, in which session, whether it is meant; None: all are.

    Returns:
        The sessions in which some was found in the end; what was killed needs a moment to be gone.
    """
    for _ in range(10):
        members = members_of(sessions)
        if may_kill is not None:
            members = {pid: members[pid] for pid in members if may_kill(pid, members[pid])}
        if not members:
            break
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError as exc:
                if exc.errno != errno.ESRCH:
                    logger.warning("Process %d cannot be killed: %s", pid, exc)
    return set(members.values())


def members_of(sessions: set[int]) -> dict[int, int]:
    """Give the live processes of the given sessions, and in which each is; none without /proc."""
    if not sessions:
        return {}
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return {}
    members = {}
    for pid in map(int, filter(str.isdigit, names)):
        stat = _protocol._process_stat(pid)
        if stat is not None and int(stat[3]) in sessions and stat[0] not in (b"Z", b"X"):
            members[pid] = int(stat[3])
    return members


def session_of(pid: int) -> int:
    """Give the session of a process; its own id if that cannot be told."""
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return pid


def is_of(folder: str, pid: int) -> bool:
    """Whether a process belongs to the job that sees this folder, as its environment tells."""
    return _FOLDER + os.fsencode(folder) in _read_words(pid, "environ")


def is_anothers(folder: str | None, pid: int) -> bool:
    """Whether a process belongs to a job that sees another folder, as its environment tells."""
    folders = [word for word in _read_words(pid, "environ") if word.startswith(_FOLDER)]
    return bool(folders) and (folder is None or _FOLDER + os.fsencode(folder) not in folders)


async def runs_script(pid: int, script: str) -> bool:
    """Tell whether a process is a shell that runs this script; False where there is no /proc."""
    words: list[bytes] = []
    for _ in range(20):
        words = _read_words(pid, "cmdline")
        if words != [b""] or not is_alive(pid):
            break
        # It is just being executed, and has no words yet (a kernel thread never has any).
        await asyncio.sleep(0.002)
    return os.fsencode(script) in words


def is_alive(pid: int) -> bool:
    """Whether there is a process of this id that has not ended."""
    return _protocol.process_state(pid) not in (None, "Z")


def _read_words(pid: int, name: str) -> list[bytes]:
    """Give the words of /proc/<pid>/cmdline or environ; none if there is no such process."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []
