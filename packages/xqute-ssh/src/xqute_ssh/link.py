"""One connection: the agent at its far end, the threads that wait for it, and files beside it."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import paramiko

from .access import AccessError, Configuration, connect
from .commands import build_agent, build_bootstrap, build_call, build_frame
from .options import Server
from .parse import Event, Events, Greeting, ProtocolError, parse_greeting

__all__ = ["SFTP_ERRORS", "Link", "LinkError", "Setup"]

#: What work over a file channel raises, also where that is lost, or its other end no such thing.
SFTP_ERRORS = (OSError, EOFError, paramiko.SSHException, paramiko.SFTPError)

_READ_BYTES = 65536
#: What a login may print before our first word.
_MOST_NOISE_BYTES = 1 << 20
_OLDEST_BASH = (4, 2)
#: How often a file channel may end by itself until the agent is to do its work.
_MOST_SFTP_LOST = 3


class LinkError(Exception):
    """The connection is lost, or a channel of it cannot be had."""


class Setup(NamedTuple):
    """What an agent is told first.

    Attributes:
        epoch: A word that is this agent's alone; an agent that finds another's there, ends.
        file: Where that is said, on the server.
        run_dir: The folder for it.
        probe: A file of the driver's workdir, as the server would see it.
        may_stage: "1": files may be brought and fetched. "": the workdir must be shared.
    """

    epoch: str
    file: str
    run_dir: str
    probe: str
    may_stage: str


class Link:
    """A connection on which an agent has greeted; all methods but `open` may be called anywhere.

    Args:
        server: The server, complete.
        client: The connection.
        close: Closes it, with all that it goes through.
        channel: The agent's.
        greeting: What it said.
        took_s: Seconds from the greeting's request to its arrival.
    """

    def __init__(
        self,
        server: Server,
        client: paramiko.SSHClient,
        close: Callable[[], None],
        channel: paramiko.Channel,
        greeting: Greeting,
        took_s: float,
    ) -> None:
        self.server = server
        self.greeting = greeting
        #: How far its clock is ahead of ours, as well as one can tell.
        self.clock_ahead_s = greeting.epoch_ms / 1000 - (time.time() - took_s / 2)
        self._client = client
        self._close = close
        self._channel = channel
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._sftp: paramiko.SFTPClient | None = None
        self._sftp_lock = threading.Lock()
        self._has_no_sftp = False
        self._n_sftp_lost = 0

    @classmethod
    def open(cls, server: Server, configuration: Configuration, setup: Setup) -> Link:
        """Connect, bring the agent, and hear its greeting; blocks.

        Args:
            server: The server, complete.
            configuration: The ssh configuration.
            setup: What the agent is told.

        Raises:
            AccessError: If one of that fails.
        """
        client, close = connect(server, configuration)
        try:
            transport = client.get_transport()
            assert transport is not None  # noqa: S101  # it has just been made
            channel = transport.open_session(timeout=server.connect_timeout)
            channel.settimeout(server.connect_timeout)
            greeting, took_s = _Beginning(channel).greet(setup)
        except AccessError as exc:
            close()
            raise AccessError(f"{server.address}: {exc}", lasting=exc.lasting) from exc
        except (paramiko.SSHException, ProtocolError, OSError, EOFError) as exc:
            close()
            words = f"{server.address}: no agent could be started: {_words_of(exc)}"
            raise AccessError(words, lasting=False) from exc
        except BaseException:
            close()
            raise
        channel.settimeout(None)
        return cls(server, client, close, channel, greeting, took_s)

    def attend(
        self, on_events: Callable[[list[Event]], None], on_lost: Callable[[str], None]
    ) -> None:
        """Begin to read and write.

        Args:
            on_events: Given what the agent says, from a thread.
            on_lost: Told once, from a thread, that and why the connection has ended.
        """
        read = (on_events, on_lost)
        self._threads = [
            threading.Thread(target=self._read, args=read, name="xqute-ssh-read", daemon=True),
            threading.Thread(target=self._write, name="xqute-ssh-write", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _read(
        self, on_events: Callable[[list[Event]], None], on_lost: Callable[[str], None]
    ) -> None:
        events = Events()
        why = "the connection was lost"
        try:
            while data := self._channel.recv(_READ_BYTES):
                if found := events.feed(data):
                    on_events(found)
        except ProtocolError as exc:
            why = f"its agent is out of order: {exc}"
        except (OSError, EOFError, paramiko.SSHException) as exc:
            why = f"the connection was lost: {_words_of(exc)}"
        self._frames.put(None)
        on_lost(why)

    def _write(self) -> None:
        frame: bytes | None = b""
        while frame is not None:
            frames = []
            frame = self._frames.get()
            with suppress(queue.Empty):
                while frame is not None:
                    frames.append(frame)
                    frame = self._frames.get_nowait()
            try:
                self._channel.sendall(b"".join(frames))
            except (OSError, EOFError, paramiko.SSHException):
                # Who reads will see it, too.
                self._client.close()
                return

    def send(self, code: str) -> None:
        """Have the agent run code, in order; never blocks, and never fails: a loss is told."""
        self._frames.put(build_frame(code))

    def close(self) -> None:
        """End the connection; blocks until its threads have ended."""
        self._frames.put(None)
        with suppress(OSError, EOFError, paramiko.SSHException):
            self._channel.close()
        self._close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    @property
    def _has_lost_sftp(self) -> bool:
        channel = None if self._sftp is None else self._sftp.get_channel()
        return channel is not None and channel.closed

    # --- files ---------------------------------------------------------------------------------

    def sftp(self) -> paramiko.SFTPClient | None:
        """Give a file channel, opened when it is needed; None: the server allows none. Blocks."""
        with self._sftp_lock:
            if self._has_lost_sftp:
                self._sftp = None
                self._n_sftp_lost += 1
                self._has_no_sftp = self._n_sftp_lost > _MOST_SFTP_LOST
            if self._sftp is None and not self._has_no_sftp:
                try:
                    self._sftp = self._open_sftp()
                except SFTP_ERRORS:
                    # One session is all it allows, or it has no such subsystem, or the login says
                    # something else in its place, or nothing.
                    self._has_no_sftp = True
            return self._sftp

    def _open_sftp(self) -> paramiko.SFTPClient | None:
        transport = self._client.get_transport()
        if transport is None:
            return None
        channel = transport.open_session()
        try:
            channel.settimeout(self.server.connect_timeout)
            channel.invoke_subsystem("sftp")
            sftp = paramiko.SFTPClient(channel)
            channel.settimeout(None)
        except SFTP_ERRORS:
            channel.close()
            raise
        return sftp


def _words_of(exc: Exception) -> str:
    return str(exc) or type(exc).__name__


class _Beginning:
    """The first exchange with a server, before there is an agent to speak to."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self._marker = f"XQUTE-{secrets.token_hex(8)}"
        self._left = b""

    def greet(self, setup: Setup) -> tuple[Greeting, float]:
        """Bring the agent; give its greeting, and how many seconds that took.

        Raises:
            AccessError: If there is no bash, or a wrong one, or the workdir cannot be used.
        """
        self._channel.exec_command(build_bootstrap(self._marker))
        self._check_bash(self._wait_for_bash())
        began_s = time.monotonic()
        self._channel.sendall(build_agent() + build_frame(build_call("setup", 0, *setup)))
        [event] = Events().feed(self._read_line() + b"\n")
        if event.kind == "failed":
            words = event.rest.decode("utf-8", "replace")
            raise AccessError(f"its workdir cannot be used: {words}", lasting=False)
        if event.kind == "unshared":
            raise AccessError(
                f"it does not see this machine's {setup.probe}: share the workdir, or say with "
                "mounted_workdir where jobs may have one there",
                lasting=True,
            )
        return parse_greeting(event), time.monotonic() - began_s

    def _wait_for_bash(self) -> str:
        """Skip what the login prints, until our own first word; give bash's version."""
        n_bytes = 0
        while True:
            line = self._read_line()
            n_bytes += len(line)
            if line.startswith(self._marker.encode()):
                return line.decode("ascii", "replace").rpartition(" ")[2]
            if n_bytes > _MOST_NOISE_BYTES:
                raise AccessError("its login prints without end", lasting=True)

    @staticmethod
    def _check_bash(version: str) -> None:
        numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
        if numbers < _OLDEST_BASH:
            raise AccessError(f"its bash is {version}, and 4.2 is needed", lasting=True)

    def _read_line(self) -> bytes:
        while b"\n" not in self._left:
            try:
                data = self._channel.recv(_READ_BYTES)
            except TimeoutError as exc:
                raise AccessError(self._silence(), lasting=False) from exc
            if not data:
                raise AccessError(self._epitaph(), lasting=True)
            self._left += data
            if len(self._left) > _MOST_NOISE_BYTES:
                raise AccessError("its login prints without end", lasting=True)
        line, _, self._left = self._left.partition(b"\n")
        return line

    def _complaint(self) -> str:
        """What it said on stderr."""
        said = b""
        while self._channel.recv_stderr_ready() and len(said) < _READ_BYTES:
            said += self._channel.recv_stderr(_READ_BYTES)
        return " ".join(said.decode("utf-8", "replace").split())[-400:]

    def _silence(self) -> str:
        complaint = self._complaint()
        return "bash did not answer; does its login wait for input?" + (
            f" It said: {complaint}" if complaint else ""
        )

    def _epitaph(self) -> str:
        status: Any = self._channel.recv_exit_status()
        complaint = self._complaint()
        words = f" It said: {complaint}" if complaint else ""
        if status == 127:  # noqa: PLR2004  # what shells exit with if there is no such command
            return f"there is no bash.{words}"
        return f"bash could not be started (exit code {status}).{words}"
