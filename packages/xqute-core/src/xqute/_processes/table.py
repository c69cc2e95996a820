"""The processes that run jobs: those we start, have forked, or take over; and their ends."""

from __future__ import annotations

import asyncio
import os
import resource
import select
import signal
import time
from collections.abc import Callable
from typing import NamedTuple

from .. import _protocol
from ..defaults import SIGNAL_BASE
from ..job import Job
from ..utils import logger
from .children import End, look_at, spawn, wait
from .fork_servers import ForkServer, ForkServers
from .sessions import is_alive, is_of, kill_sessions, members_of, session_of, signal_group

__all__ = ["ProcessTable"]

_RESERVED_FDS = 16
#: Seconds in which a process may still be about to become the command; until its second TERM.
_YOUNG_S, _TERM_AGAIN_S = 1.0, 0.2
#: Seconds between two looks at children for which there is no pidfd.
_SWEEP_INTERVAL_S = 0.02
#: How long what was killed may take to be gone.
_KILLED_END_S = 5.0


class _Child(NamedTuple):
    pid: int
    job: Job
    session: int
    pidfd: int | None
    started_s: float
    #: What the claims of the attempt are named after, and the job's folder as the job sees it:
    #: where a session may have been another job's, too.
    tag: str = ""
    folder: str = ""
    #: By which a wrapper that is no child, but was adopted, is known.
    claim: _protocol.StartClaim | None = None


class ProcessTable:
    """The children of this process that run jobs, and those of its fork servers.

    While attached to an event loop, each exit is told at once: one epoll holds the pidfds of all
    children, so that the loop has one descriptor to watch, however many there are. Where a pidfd is
    not to be had (no such kernel, no descriptor left), children are looked at in short intervals.

    Args:
        on_exit: Told, on the event loop, of the exit of a job's process: its id and exit code,
            128+n for a death by signal n, None if something else in this process reaped it.
        label: What is to be read of its fork servers in a list of processes.
    """

    def __init__(self, on_exit: Callable[[int, Job, int | None], None], label: str = "") -> None:
        self._on_exit = on_exit
        self._children: dict[int, _Child] = {}
        self._servers = ForkServers(label, self._end_forked, self._lose_server)
        #: What they run.
        self._forked: dict[int, _Child] = {}
        self._killed: set[int] = set()
        #: Sessions with processes that were sent KILL and not yet seen to be gone.
        self._dying: set[int] = set()
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
            self._servers.open(self._epoll, self._environ)

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
        self._servers.close()
        self._killed -= self._forked.keys()
        self._forked.clear()
        if self._epoll is not None:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None
        self._loop = self._environ = None

    async def drain(self, at_most_s: float) -> None:
        """Return when none is left, or time is up; a wrapper that has told its end is going.

        What was killed is going, too, and fork servers that run nothing are ended.
        """
        until_s = time.monotonic() + at_most_s
        while (self._children or self._forked or self._adopted) and time.monotonic() < until_s:
            self._reap(list(self._children.values()))
            self._look_at_adopted(list(self._adopted.values()))
            await asyncio.sleep(0.001)
        until_s = time.monotonic() + _KILLED_END_S
        while time.monotonic() < until_s:
            self._dying.intersection_update(members_of(self._dying).values())
            if self._servers.end_idle() and not self._dying:
                break
            await asyncio.sleep(0.001)

    def spawn(self, argv: list[str], job: Job) -> int:
        """Start a process in a session of its own, without streams, and give its id.

        Raises:
            OSError: If it cannot be started.
        """
        pid = spawn(argv, self._environ or os.environb, ours=self._by_pidfd)
        pidfd = self._open_pidfd(pid)
        child = self._children[pid] = _Child(pid, job, pid, pidfd, time.monotonic())
        if pidfd is not None:
            self._by_pidfd[pidfd] = child
        else:
            self._sweep_later()
        return pid

    def fork(self, script: str, job: Job, tag: str, folder: str) -> int | None:
        """Have a process that was forked beforehand run a wrapper, and give its id.

        It is in a process group of its own. Its session is that of the shell which has forked it,
        and which runs nothing else meanwhile.

        Args:
            script: The path of the wrapper. It must not matter to it that `$$` is another process.
            job: The job.
            tag: What the claims of the attempt are named after.
            folder: That of the job, as the job sees it.

        Returns:
            None: none is ready.
        """
        server = self._servers.run(script)
        if server is None or server.process is None:
            return None
        pid = server.process
        self._forked[pid] = _Child(pid, job, server.pid, None, time.monotonic(), tag, folder)
        return pid

    def _end_forked(self, server: ForkServer, pid: int, rc: int) -> None:
        child = self._forked.pop(pid)
        # A wrapper that died of a signal leaves what it started.
        if pid in self._killed or (
            rc > SIGNAL_BASE and _protocol.read_end_record(child.job.local_dir, child.tag) is None
        ):
            self._killed.discard(pid)
            self._servers.retire(server, child.folder)
        self._on_exit(pid, child.job, rc)

    def _lose_server(self, pid: int) -> None:
        """What a fork server ran may run on, without it."""
        child = self._forked.pop(pid)
        self._killed.discard(pid)
        self.adopt(pid, child.job, child.tag, child.folder)
        if pid not in self._adopted and not is_alive(pid):
            self._on_exit(pid, child.job, None)

    def adopt(self, pid: int, job: Job, tag: str, folder: str) -> None:
        """Tell of the exit of a wrapper that is no child, if it is alive and has claimed its start.

        Args:
            pid: Its process id.
            job: The job that it runs.
            tag: Of the attempt, whose start claim says which process of this id is meant.
            folder: That of the job, as the job sees it.
        """
        if pid in self._children or pid in self._forked or self._loop is None:
            return
        known = self._adopted.get(pid)
        if known is not None:
            if known.job is job:
                return
            self._drop_adopted(known)
        pidfd = self._open_pidfd(pid)
        # After opening: now it cannot become another one.
        claim = _protocol.read_start_claim(job.local_dir, tag)
        child = _Child(pid, job, session_of(pid), pidfd, time.monotonic(), tag, folder, claim)
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
        # Its session may be another's by now: only what knows its folder was its own.
        _kill_own(child)
        wait(child.pid)  # a child of this process after all, of an earlier run in it
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
        forked = self._forked.get(pid)
        if forked is not None and forked.job is job:
            return True
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
        child = self._children.get(pid) or self._forked.get(pid)
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
        # Their sessions follow when their ends are told.
        self._killed |= pids & self._forked.keys()
        adopted = pids & self._adopted.keys()
        self._killed_adopted |= adopted
        for child in map(self._adopted.__getitem__, adopted):
            if child.session != child.pid:
                _kill_own(child)
        self._kill_sessions(pids - self._forked.keys())

    def _kill_sessions(self, leaders: set[int]) -> None:
        self._dying |= kill_sessions(leaders)

    def _terminate_again(self, child: _Child) -> None:
        if child in (self._children.get(child.pid), self._forked.get(child.pid)):
            signal_group(child.pid, signal.SIGTERM)

    def _on_readable(self) -> None:
        if self._epoll is None:
            return
        ready = {fd for fd, _ in self._epoll.poll(0)}
        # Both before anything is closed: its number may be another's at once.
        servers = self._servers.among(ready)
        exited = [self._by_pidfd[fd] for fd in ready if fd in self._by_pidfd]
        self._reap([child for child in exited if child.claim is None])
        for child in exited:
            if child.claim is not None:
                self._end_adopted(child)
        for server in servers:
            self._servers.hear(server)

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
        ends = {child: look_at(child.pid) for child in children}
        exited = [child for child, end in ends.items() if end is not End.NOT_YET]
        # A wrapper that died of a signal leaves what it started.
        sessions = {
            child.pid
            for child in exited
            if child.pid in self._killed or ends[child] is End.SIGNALLED
        }
        for child in exited:
            signal_group(child.pid, signal.SIGKILL)
        self._kill_sessions(sessions)
        for child in exited:
            rc = wait(child.pid)
            del self._children[child.pid]
            self._killed.discard(child.pid)
            if child.pidfd is not None:
                self._close_pidfd(child.pidfd)
            self._on_exit(child.pid, child.job, rc)
        return len(exited)


def _kill_own(child: _Child) -> None:
    """KILL what a job has in a session that others have, too."""
    kill_sessions({child.session}, lambda pid, _: is_of(child.folder, pid))
