"""Processes of this machine: starting wrappers, hearing of their exits, ending their groups."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Callable, Container, Mapping
from enum import Enum, auto
from typing import NamedTuple

from . import _protocol
from .defaults import SIGNAL_BASE
from .job import Job
from .utils import logger

__all__ = ["ProcessTable", "runs_script"]

#: What a driver may ignore or block and a job must not inherit so.
_DEFAULT_SIGNALS = [
    sig
    for sig in signal.Signals
    if sig not in (signal.SIGKILL, signal.SIGSTOP) and sig < getattr(signal, "SIGRTMIN", 32)
]
_STDERR = 2
_RESERVED_FDS = 16
#: Seconds in which a process may still be about to become the command; until its second TERM.
_YOUNG_S, _TERM_AGAIN_S = 1.0, 0.2
#: Seconds between two looks at children for which there is no pidfd.
_SWEEP_INTERVAL_S = 0.02


class _Child(NamedTuple):
    pid: int
    job: Job
    pidfd: int | None
    started_s: float
    #: By which a wrapper that is no child, but was adopted, is known.
    claim: _protocol.StartClaim | None = None


class ProcessTable:
    """The children of this process that run jobs.

    While attached to an event loop, each exit is told at once: one epoll holds the pidfds of all
    children, so that the loop has one descriptor to watch, however many there are. Where a pidfd is
    not to be had (no such kernel, no descriptor left), children are looked at in short intervals.

    Args:
        on_exit: Told, on the event loop, of the exit of a job's process: its id and exit code,
            128+n for a death by signal n, None if something else in this process reaped it.
    """

    def __init__(self, on_exit: Callable[[int, Job, int | None], None]) -> None:
        self._on_exit = on_exit
        self._children: dict[int, _Child] = {}
        self._killed: set[int] = set()
        #: By process id: where children that await their turn are told of it.
        self._gates: dict[int, int] = {}
        #: Those that were started early and never had their turn.
        self._untold: set[int] = set()
        self._by_pidfd: dict[int, _Child] = {}
        #: Wrappers that another process has started; with a pidfd they are in `_by_pidfd`, too.
        self._adopted: dict[int, _Child] = {}
        #: Those whose exit code is known, because it is we who have ended them.
        self._killed_adopted: set[int] = set()
        self._epoll: select.epoll | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweep: asyncio.TimerHandle | None = None
        #: Descriptors from here on are not taken for pidfds: others need some, too.
        self._pidfd_limit = 0
        #: What the children inherit: converting it costs more than most of what a spawn needs.
        self._environ: dict[bytes, bytes] | None = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Tell of exits on this event loop from now on; children get the environment of now."""
        self.detach()
        self._loop = loop
        self._environ = dict(os.environb)
        self._pidfd_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVED_FDS
        if hasattr(os, "pidfd_open"):
            self._epoll = select.epoll()
            loop.add_reader(self._epoll.fileno(), self._on_readable)

    def detach(self) -> None:
        """Tell no more; the children are still reaped when they are asked about."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for child in list(self._adopted.values()):
            self._drop_adopted(child)
        for pidfd, child in list(self._by_pidfd.items()):
            self._children[child.pid] = child._replace(pidfd=None)
            self._close_pidfd(pidfd)
        if self._epoll is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._loop = self._environ = None

    async def drain(self, at_most_s: float) -> None:
        """Return when none is left, or time is up; a wrapper that has told its end is going."""
        until_s = time.monotonic() + at_most_s
        while (self._children or self._adopted) and time.monotonic() < until_s:
            self._reap(list(self._children.values()))
            self._look_at_adopted(list(self._adopted.values()))
            await asyncio.sleep(0.001)

    def spawn(self, argv: list[str], job: Job) -> int:
        """Start a process in a session of its own, without streams, and give its id.

        Raises:
            OSError: If it cannot be started.
        """
        return self._add(_spawn(argv, self._actions(), self._environ or os.environb), job)

    def spawn_early(self, argv: list[str], job: Job) -> int:
        """Start a process that awaits its turn, a line on its stdin, and give its id.

        Until then its exit is nobody's business, and is not told. It ends by itself when it is
        dismissed, and when this process is no more.

        Raises:
            OSError: If it cannot be started.
        """
        hears, gate = os.pipe()
        try:
            pid = _spawn(argv, self._actions(stdin=hears), self._environ or os.environb)
        except BaseException:
            os.close(gate)
            raise
        finally:
            os.close(hears)
        self._gates[pid] = gate
        self._untold.add(pid)
        return self._add(pid, job)

    def give_turn(self, pid: int) -> bool:
        """Let a process that was started early go on; False: it is gone."""
        gate = self._gates.pop(pid, None)
        if gate is None:
            return False
        try:
            os.write(gate, b"\n")
        except BrokenPipeError:
            return False
        finally:
            os.close(gate)
        self._untold.discard(pid)
        child = self._children[pid]._replace(started_s=time.monotonic())
        self._children[pid] = child
        if child.pidfd is not None:
            self._by_pidfd[child.pidfd] = child
        return True

    def dismiss(self, pid: int) -> None:
        """Let a process that was started early end: its turn never comes."""
        if pid in self._gates:
            os.close(self._gates.pop(pid))

    def _add(self, pid: int, job: Job) -> int:
        pidfd = self._open_pidfd(pid)
        child = self._children[pid] = _Child(pid, job, pidfd, time.monotonic())
        if pidfd is not None:
            self._by_pidfd[pidfd] = child
        else:
            self._sweep_later()
        return pid

    def _actions(self, stdin: int | None = None) -> list[tuple[object, ...]]:
        """What a child does first: no streams, and nothing of what this process has open."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
            if stdin is None
            else (os.POSIX_SPAWN_DUP2, stdin, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *(
                (os.POSIX_SPAWN_CLOSE, fd)
                for fd in _inheritable_fds(self._by_pidfd)
                if fd < limit  # one beyond it (the limit was lowered) cannot be closed so
            ),
        ]

    def adopt(self, pid: int, job: Job, tag: str) -> None:
        """Tell of the exit of a wrapper that is no child, if it is alive and has claimed its start.

        Args:
            pid: Its process id.
            job: The job that it runs.
            tag: Of the attempt, whose start claim says which process of this id is meant.
        """
        if pid in self._children or self._loop is None:
            return
        known = self._adopted.get(pid)
        if known is not None:
            if known.job is job:
                return
            self._drop_adopted(known)
        pidfd = self._open_pidfd(pid)
        # After opening: now it cannot become another one.
        claim = _protocol.read_start_claim(job.local_dir, tag)
        child = _Child(pid, job, pidfd, time.monotonic(), claim)
        if pidfd is not None:
            self._by_pidfd[pidfd] = child
        if claim is None or claim.pid != pid or not _protocol.claim_is_alive(claim):
            if pidfd is not None:
                self._close_pidfd(pidfd)
            return
        self._adopted[pid] = child
        if pidfd is None:
            self._sweep_later()

    def _drop_adopted(self, child: _Child) -> None:
        del self._adopted[child.pid]
        self._killed_adopted.discard(child.pid)
        if child.pidfd is not None:
            self._close_pidfd(child.pidfd)

    def _end_adopted(self, child: _Child) -> None:
        """A wrapper that is no child has exited."""
        was_killed = child.pid in self._killed_adopted
        self._drop_adopted(child)
        # Its id may be another's by now: only what knows its folder was its own.
        kill_sessions({child.pid}, b"XQUTE_JOB_METADIR=" + os.fsencode(child.job.local_dir))
        _wait(child.pid)  # a child of this process after all, of an earlier run in it
        self._on_exit(child.pid, child.job, SIGNAL_BASE + signal.SIGKILL if was_killed else None)

    def _open_pidfd(self, pid: int) -> int | None:
        if self._epoll is None:
            return None
        try:
            pidfd = os.pidfd_open(pid)
        except OSError as exc:
            logger.debug("No pidfd for process %d: %s", pid, exc)
            return None
        if pidfd >= self._pidfd_limit:
            os.close(pidfd)
            return None
        self._epoll.register(pidfd, select.EPOLLIN)
        return pidfd

    def _close_pidfd(self, pidfd: int) -> None:
        """Close the pidfd of a child; taking it out of the epoll first is not for nothing.

        A child that is just being executed holds a copy of every descriptor for a moment, and with
        it the registration: the next pidfd of that number would be told of twice.
        """
        del self._by_pidfd[pidfd]
        if self._epoll is not None:
            self._epoll.unregister(pidfd)
        os.close(pidfd)

    def is_running(self, pid: int, job: Job) -> bool | None:
        """Tell whether a child still runs; None if `pid` is not a child that runs this job."""
        child = self._children.get(pid)
        if child is None or child.job is not job:
            return None
        return not self._reap([child])

    def terminate(self, pid: int) -> None:
        """Send TERM to the group of a process; what stays in its session when it ends is killed.

        A bash that has just forked forgets a signal that comes before it has put back its handlers,
        so that a command so young may not have seen TERM. It gets another one.
        """
        signal_group(pid, signal.SIGTERM)
        child = self._children.get(pid)
        if child is None:
            return
        self._killed.add(pid)
        is_young = time.monotonic() - child.started_s < _YOUNG_S
        if is_young and self._loop is not None:
            self._loop.call_later(_TERM_AGAIN_S, self._terminate_again, child)

    def kill(self, pids: set[int]) -> None:
        """KILL the groups and sessions of processes."""
        for pid in pids:
            signal_group(pid, signal.SIGKILL)
        self._killed_adopted |= pids & self._adopted.keys()
        kill_sessions(pids)

    def _terminate_again(self, child: _Child) -> None:
        if self._children.get(child.pid) is child:
            signal_group(child.pid, signal.SIGTERM)

    def _on_readable(self) -> None:
        if self._epoll is None:
            return
        ready = {fd for fd, _ in self._epoll.poll(0)}
        exited = [self._by_pidfd[fd] for fd in ready if fd in self._by_pidfd]
        self._reap([child for child in exited if child.claim is None])
        for child in exited:
            if child.claim is not None:
                self._end_adopted(child)

    def _sweep_later(self) -> None:
        if self._loop is not None and self._sweep is None:
            self._sweep = self._loop.call_later(_SWEEP_INTERVAL_S, self._sweep_unwatched)

    def _sweep_unwatched(self) -> None:
        self._sweep = None
        unwatched = [child for child in self._children.values() if child.pidfd is None]
        left = len(unwatched) - self._reap(unwatched)
        adopted = [child for child in self._adopted.values() if child.pidfd is None]
        left += len(adopted) - self._look_at_adopted(adopted)
        if left:
            self._sweep_later()

    def _look_at_adopted(self, adopted: list[_Child]) -> int:
        """Tell of those that have exited; give how many there were."""
        exited = [c for c in adopted if c.claim and _protocol.claim_is_alive(c.claim) is False]
        for child in exited:
            self._end_adopted(child)
        return len(exited)

    def _reap(self, children: list[_Child]) -> int:
        """Reap those that have exited, and end what they left behind; give how many there were.

        While a dead leader is not reaped its process id, and so its group's and session's, cannot
        be used again: that is when the rest of it can be killed safely.
        """
        ends = {child: _look_at(child.pid) for child in children}
        exited = [child for child, end in ends.items() if end is not _End.NOT_YET]
        # A wrapper that died of a signal leaves what it started.
        sessions = {
            child.pid
            for child in exited
            if child.pid in self._killed or ends[child] is _End.SIGNALLED
        }
        for child in exited:
            signal_group(child.pid, signal.SIGKILL)
        if sessions:
            kill_sessions(sessions)
        for child in exited:
            rc = _wait(child.pid)
            del self._children[child.pid]
            self._killed.discard(child.pid)
            if child.pidfd is not None:
                self._close_pidfd(child.pidfd)
            if child.pid in self._untold:
                self._untold.remove(child.pid)
                self.dismiss(child.pid)
            else:
                self._on_exit(child.pid, child.job, rc)
        return len(exited)


def _spawn(
    argv: list[str], file_actions: list[tuple[object, ...]], environ: Mapping[bytes, bytes]
) -> int:
    try:
        return os.posix_spawn(
            argv[0],
            argv,
            environ,
            file_actions=file_actions,
            setsid=True,
            setsigmask=[],
            setsigdef=_DEFAULT_SIGNALS,
        )
    except NotImplementedError:
        # A libc whose posix_spawn makes no sessions (macOS).
        process = subprocess.Popen(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        # It is reaped here, so that Popen must not think it is its business.
        process.returncode = 0
        return process.pid


def _inheritable_fds(ours: Container[int]) -> list[int]:
    """Descriptors that a child would inherit: what the starter of this process left open, mostly.

    Args:
        ours: Descriptors that are known not to be inheritable.
    """
    try:
        names = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return []
    fds = []
    for fd in map(int, names):
        try:
            if fd > _STDERR and fd not in ours and os.get_inheritable(fd):
                fds.append(fd)
        except OSError:
            continue  # the descriptor of the listing itself
    return fds


class _End(Enum):
    NOT_YET = auto()
    EXITED = auto()
    SIGNALLED = auto()
    #: Something else in this process has reaped it.
    REAPED = auto()


def _look_at(pid: int) -> _End:
    """Tell whether a child has ended, without reaping it."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return _End.REAPED
    if result is None:
        return _End.NOT_YET
    return _End.EXITED if result.si_code == os.CLD_EXITED else _End.SIGNALLED


def _wait(pid: int) -> int | None:
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else SIGNAL_BASE + result.si_status


def signal_group(pgid: int, sig: signal.Signals) -> None:
    """Send a signal to a process group; one that is not there is no error."""
    try:
        os.killpg(pgid, sig)
    except ProcessLookupError:
        pass
    except PermissionError as exc:
        logger.warning("Process group %d cannot be signalled: %s", pgid, exc)


def _read_words(pid: int, name: str) -> list[bytes]:
    """Give the words of /proc/<pid>/cmdline or environ; none if there is no such process."""
    try:
        with open(f"/proc/{pid}/{name}", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


async def runs_script(pid: int, script: str) -> bool:
    """Tell whether a process is a shell that runs this script; False where there is no /proc."""
    words: list[bytes] = []
    for _ in range(20):
        words = _read_words(pid, "cmdline")
        if words != [b""] or _protocol.process_state(pid) == "Z":
            break
        # It is just being executed, and has no words yet (a kernel thread never has any).
        await asyncio.sleep(0.002)
    return os.fsencode(script) in words


def kill_sessions(sessions: set[int], variable: bytes = b"") -> None:
    """KILL every process of the given sessions, until a look finds none that is alive.

    Where there is no /proc, only the groups that have the sessions' names are reached.

    Args:
        sessions: The ids of the sessions.
        variable: Only those that were started with this in their environment, if it is given.
    """
    for _ in range(10):
        members = [
            pid
            for pid in _session_members(sessions)
            if not variable or variable in _read_words(pid, "environ")
        ]
        if not members:
            return
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError as exc:
                if exc.errno != errno.ESRCH:
                    logger.warning("Process %d cannot be killed: %s", pid, exc)


def _session_members(sessions: set[int]) -> list[int]:
    try:
        names = os.listdir("/proc")
    except FileNotFoundError:
        return []
    members = []
    for name in names:
        if not name.isdigit():
            continue
        stat = _protocol._process_stat(int(name))
        if stat is not None and int(stat[3]) in sessions and stat[0] not in (b"Z", b"X"):
            members.append(int(name))
    return members
