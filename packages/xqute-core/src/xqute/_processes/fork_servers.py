"""Shells that run wrappers in processes which they have forked beforehand."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import ClassVar
from weakref import WeakSet

from ..defaults import JOBCMD_WRAPPER_LANG
from ..utils import logger
from .children import End, look_at, spawn, wait
from .sessions import is_anothers, kill_sessions

__all__ = ["ForkServer", "ForkServers"]

#: How many there are at the most.
_MOST = 16


class ForkServer:
    """One such shell, in a session of its own, which runs one wrapper at a time.

    What it does, and says, is told in `fork_server.sh`. It ends when it is closed, or when this
    process is no more; what it runs then is not disturbed.

    Attributes:
        pid: Its process id, which is that of its session.
        process: The process that waits for a wrapper, or runs one; None: there is none just now.
        is_busy: Whether that process was told to run one.
        cwd: The working directory of both; None: one that was removed.

    Args:
        label: What is to be read of it in a list of processes.
        environ: Its environment, and that of what it runs.

    Raises:
        OSError: If it cannot be started.
    """

    def __init__(self, label: str, environ: Mapping[bytes, bytes]) -> None:
        self.process: int | None = None
        self.is_busy = False
        self.cwd = _find_cwd()
        self._heard = b""
        self._channel, its_own = socket.socketpair()
        with its_own:
            try:
                # A bash whose stdin is a socket takes itself for one that sshd has started.
                shell = [JOBCMD_WRAPPER_LANG, "--norc", "-p", "-c", _script()]
                words = [*shell, "xqute-fork-server", label]
                self.pid = spawn(words, environ, channel=its_own.fileno())
            except BaseException:
                self._channel.close()
                raise
        self._channel.setblocking(False)

    def fileno(self) -> int:
        """Give the descriptor that is readable when there is something to hear."""
        return self._channel.fileno()

    def is_closed(self) -> bool:
        """Whether it was closed."""
        return self.fileno() < 0

    def run(self, script: str) -> bool:
        """Have the process that waits run a wrapper; False: it cannot be told."""
        try:
            self._channel.sendall(os.fsencode(f"{self.process}:{script}\0"))
        except OSError:
            return False
        self.is_busy = True
        return True

    def hear(self) -> list[int] | None:
        """Give what it has said, by turns a process id and an exit code; None: it is gone."""
        try:
            data = self._channel.recv(4096)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not data:
            return None
        *lines, self._heard = (self._heard + data).split(b"\n")
        return [int(line) for line in lines]

    def close(self) -> None:
        """Have it end, as soon as what it runs has."""
        self._channel.close()


class ForkServers:
    """The fork servers of one scheduler; more are made as they are needed.

    Args:
        label: What is to be read of them in a list of processes.
        on_exit: Told when what one ran has ended and nothing is left in its group: the server, the
            process id, the exit code, 128+n for a death by signal n.
        on_lost: Told when a server is gone before what it runs: the process id.
    """

    #: All of this process.
    _all: ClassVar[WeakSet[ForkServers]] = WeakSet()

    def __init__(
        self,
        label: str,
        on_exit: Callable[[ForkServer, int, int], None],
        on_lost: Callable[[int], None],
    ) -> None:
        self._label = label
        self._on_exit = on_exit
        self._on_lost = on_lost
        self._epoll: select.epoll | None = None
        self._environ: Mapping[bytes, bytes] = {}
        self._servers: dict[int, ForkServer] = {}
        #: Those with a process that waits for a wrapper.
        self._ready: list[ForkServer] = []
        #: The ids of those that have no more to do, with the folder of the job whose end is theirs;
        #: and of those that were let go of while busy.
        self._idle: dict[int, str | None] = {}
        self._gone: set[int] = set()
        #: Whether one was wanted already.
        self._was_wanted = False
        self._all.add(self)

    def open(self, epoll: select.epoll, environ: Mapping[bytes, bytes]) -> None:
        """Make servers from now on; whoever polls `epoll` calls `hear` for those that it names."""
        self._epoll, self._environ = epoll, environ

    def close(self) -> None:
        """Let go of all; those that are busy end when what they run has."""
        for server in list(self._servers.values()):
            self.retire(server)
        self._bury()
        self._epoll = None
        self._was_wanted = False

    def among(self, fds: set[int]) -> list[ForkServer]:
        """Give those that have these descriptors."""
        return [self._servers[fd] for fd in fds & self._servers.keys()]

    def run(self, script: str) -> ForkServer | None:
        """Have a process that waits run a wrapper; None: none does, but soon one may."""
        # What is read by bash's `read` is exact only for these.
        if self._epoll is None or not (script.isascii() and script.isprintable()):
            return None
        cwd = _find_cwd()
        while self._ready:
            server = self._ready.pop()
            if server.cwd == cwd and server.run(script):
                return server
            self.retire(server)
        self._retire_dead()
        # One job alone would only wait for it.
        if self._was_wanted and len(self._servers) < _MOST:
            self._start()
        self._was_wanted = True
        return None

    def _retire_dead(self) -> None:
        """Do without servers that were killed before they told of the process that they forked.

        It holds their socket, so that this does not tell that they are gone.
        """
        silent = [server for server in self._servers.values() if server.process is None]
        for server in silent:
            if look_at(server.pid) is not End.NOT_YET:
                self.retire(server)

    def _start(self) -> None:
        self._bury()  # or each that a job took with it would be a zombie until the run is over
        try:
            server = ForkServer(self._label, self._environ)
        except OSError as exc:
            logger.debug("No fork server is started: %s", exc)
            return
        self._servers[server.fileno()] = server
        if self._epoll is not None:
            self._epoll.register(server.fileno(), select.EPOLLIN)

    def hear(self, server: ForkServer) -> None:
        """Hear what a server has to say, and pass it on."""
        if server.is_closed():
            return
        said = server.hear()
        if said is None:
            self.retire(server)
            if server.is_busy and server.process is not None:
                self._on_lost(server.process)
            return
        for number in said:
            if server.is_closed():
                return  # by whoever was told of the number before
            pid, server.process = server.process, None
            if pid is None:
                server.process = number
                self._ready.append(server)
            elif server.is_busy:
                server.is_busy = False
                self._on_exit(server, pid, number)
            else:
                self._ready.remove(server)  # it was killed while it waited

    def retire(self, server: ForkServer, folder: str | None = None) -> None:
        """Let a server end, once what it runs has.

        Args:
            server: It.
            folder: That of the job which was its last, as the job sees it, if nothing may be left
                of that; None: what jobs have left in its session is not touched.
        """
        del self._servers[server.fileno()]
        if server in self._ready:
            self._ready.remove(server)
        if self._epoll is not None:
            self._epoll.unregister(server.fileno())
        server.close()
        if server.is_busy:
            self._gone.add(server.pid)
        else:
            self._idle[server.pid] = folder
        if folder is not None:
            self._bury()

    def end_idle(self) -> bool:
        """End those that run nothing; tell whether there are none, and none of their processes."""
        for server in [server for server in self._servers.values() if not server.is_busy]:
            self.retire(server)
        self._bury()
        return not self._idle

    def _bury(self) -> None:
        """KILL idle servers and what is to end with them; reap those of which nothing is left.

        Until one is reaped its process id, and so its session's, cannot be used again.
        """
        idle = {pid for pid in self._idle if look_at(pid) is not End.REAPED}
        left = kill_sessions(idle, self._ends_with_its_server)
        for pid in {*self._idle, *self._gone} - left:
            if look_at(pid) is not End.NOT_YET:
                wait(pid)
                self._idle.pop(pid, None)
                self._gone.discard(pid)

    def _ends_with_its_server(self, pid: int, session: int) -> bool:
        """Whether a process in the session of an idle server is not what another job has left."""
        return not is_anothers(self._idle[session], pid)

    @classmethod
    def _forget_all(cls) -> None:
        """Let go of those of the process that this one was forked off: no child is one of them."""
        for servers in cls._all:
            servers._epoll = None  # what is registered there is that process's
            servers.close()


os.register_at_fork(after_in_child=ForkServers._forget_all)


def _find_cwd() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


@cache
def _script() -> str:
    text = resources.files(__package__).joinpath("fork_server.sh").read_text("ascii")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    return "\n".join(lines)
