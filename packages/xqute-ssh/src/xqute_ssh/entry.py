"""One attempt of a job on a server, and what has been heard of it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, NamedTuple

from xqute import Job
from xqute.scheduler import BackendState

from .parse import Event, unescape
from .staging import Transfer

if TYPE_CHECKING:
    from .host import Host

__all__ = ["MIRRORED", "Entry"]

#: What the agent sends by itself with the end of a job, where files are not shared.
MIRRORED = ("stdout", "stderr", "start", "end")


class Report(NamedTuple):
    """What one sender has told of a job's files."""

    told: dict[str, bytearray]
    unfinished: set[str]


class Entry:
    """An attempt that was, or is about to be, sent to a server.

    Attributes:
        number: What it is called between us and the agent.
        job: The job.
        tag: What its claims are named after.
        folder: Its folder, on the server.
        staged: Whether that is another one than the driver's.
        remote_script: Where its script is, there.
        script: Its text, if the agent is to write it.
        outputs: What is to be fetched when it has ended.
        host: Where it is.
        pid: Of its wrapper; None: not known (yet). Likewise `ticks`, when that began.
        accepted: Its native id, once the agent says that it has started.
        was_sent: Whether the agent may have heard of it.
        started_s: When (loop time) we heard that it started; 0: long ago, or not yet.
        missed_s: Since when (loop time) it is known to be over and not told; 0: it is not.
        killed: Whether it was asked to end.
        due_signal: What it is to be sent as soon as that can be; "": nothing.
        is_over: Whether its end is known; it may still have to be brought home.
        concluded: How it ended, once that is told.
        lock: Held while its files are on their way.
    """

    __slots__ = (
        "_reports",
        "accepted",
        "concluded",
        "due_signal",
        "folder",
        "host",
        "is_over",
        "job",
        "killed",
        "lock",
        "missed_s",
        "number",
        "outputs",
        "pid",
        "remote_script",
        "script",
        "staged",
        "started_s",
        "tag",
        "ticks",
        "told",
        "unfinished",
        "was_sent",
    )

    def __init__(self, number: int, job: Job, tag: str, folder: str, host: Host) -> None:
        self.number = number
        self.job = job
        self.tag = tag
        self.folder = folder
        self.host = host
        self.staged = False
        self.remote_script = ""
        self.script: str | None = None
        self.outputs: list[Transfer] = []
        self.pid: int | None = None
        self.ticks = "-"
        self.accepted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # Who waited for it may have been told to stop.
        self.accepted.add_done_callback(lambda future: future.exception())
        self.concluded: asyncio.Future[BackendState] = asyncio.get_running_loop().create_future()
        self.was_sent = False
        self.started_s = 0.0
        self.missed_s = 0.0
        self.killed = False
        self.due_signal = ""
        self.is_over = False
        self.lock = asyncio.Lock()
        #: What came with its end, by name; and of which of them that is not all.
        self.told: dict[str, bytearray] = {}
        self.unfinished: set[str] = set()
        self._reports: dict[bytes, Report] = {}

    def __repr__(self) -> str:
        return f"<Entry {self.number}: {self.job!r} as {self.pid} on {self.host.server.address}>"

    @property
    def jid(self) -> str:
        """The native id: ``pid@user@host:port``; the process is "-" where there is none."""
        return f"{'-' if self.pid is None else self.pid}@{self.host.server.address}"

    @property
    def identity(self) -> tuple[str, str, str, str]:
        """The words by which the agent finds it: folder, tag, process, start time."""
        return self.folder, self.tag, "-" if self.pid is None else str(self.pid), self.ticks

    def set_process(self, pid: str, ticks: str) -> None:
        """Note its process, as the agent says it: a number and a number, or "-"."""
        self.pid = int(pid) if pid.isdigit() else None
        self.ticks = ticks

    def add_piece(self, event: Event) -> None:
        """Take in a piece of a file that comes with its end, or that there is more of it."""
        sender, name, rest = event.rest.split(b" ", 2)
        report = self._reports.setdefault(sender, Report({}, set()))
        known = name.decode()
        if event.kind == "data":
            report.told.setdefault(known, bytearray()).extend(unescape(rest))
        elif rest == b"more":
            report.unfinished.add(known)
        elif rest != b"none":
            report.told.setdefault(known, bytearray())

    def end(self, sender: str) -> None:
        """It is over, as one of those says that tell so; what that one has sent counts."""
        self.is_over = True
        self.told, self.unfinished = self._reports.pop(sender.encode(), Report({}, set()))
        self._reports.clear()

    def forget_pieces(self) -> None:
        """Whoever was telling its end was cut short."""
        self._reports.clear()

    # --- its files -----------------------------------------------------------------------------

    def remote(self, name: str) -> str:
        """Where one of its files is on the server."""
        return f"{self.folder}/{self._file(name)}"

    def local(self, name: str) -> str:
        """Where the driver has it."""
        return f"{self.job.local_dir}/{self._file(name)}"

    def _file(self, name: str) -> str:
        return f"job.{name}.{self.tag}" if name in ("start", "end") else f"job.{name}"

    @property
    def is_home(self) -> bool:
        """Whether its end is told here."""
        return os.path.exists(self.local("end"))

    def size(self, name: str) -> int:
        """How much of it the driver has."""
        try:
            return os.stat(self.local(name)).st_size
        except FileNotFoundError:
            return 0
