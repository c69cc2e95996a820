"""The run's own folder in a cloud: its event spool is a prefix, its lock an object."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from .. import _clouds, _protocol
from .._protocol import Event, parse_event_name
from ..errors import WorkdirLockedError
from ..utils import logger

__all__ = ["FarEventSpool", "FarLock", "open_far"]

#: Seconds between two listings: the least, while there is news, and the most.
_LEAST_S, _MOST_S = 0.5, 5.0
#: Seconds after which a lock that was not renewed is nobody's, and between two renewals.
_LEASE_S, _RENEW_S = 90.0, 20.0


class FarEventSpool:
    """Tells of each event once, and deletes its object: two requests, however many jobs there are.

    Args:
        folder: Where the jobs leave events.
        tell: Called on the event loop for each event, in the order of time.
        most_s: Seconds between two listings when nothing happens, at the most.
    """

    def __init__(self, folder: str, tell: Callable[[Event], None], most_s: float = _MOST_S) -> None:
        self._folder = folder
        self._tell = tell
        self._most_s = min(most_s, _MOST_S)
        self._least_s = min(_LEAST_S, self._most_s)
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = asyncio.Event()
        #: Told, but perhaps not deleted.
        self._told: set[str] = set()

    def start(self) -> None:
        """Begin to list; what is there already is told, too."""
        self._is_stopping.clear()
        self._spawn()

    def _spawn(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._list())
        self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            task.result()
        elif not self._is_stopping.is_set():
            self._spawn()  # a loop that ends cancels every task; jobs are still to be heard of

    async def stop(self) -> None:
        """Tell what is there to be told, and list no more."""
        self._is_stopping.set()
        if self._task is not None:
            await asyncio.wait([self._task])
            await self.look()

    async def _list(self) -> None:
        pause_s = self._least_s
        while not self._is_stopping.is_set():
            n_news = await self.look()
            pause_s = self._least_s if n_news else min(pause_s * 1.5, self._most_s)
            try:
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)
            except TimeoutError:
                continue

    async def look(self) -> int:
        """Make one listing, tell what is new in it, have that deleted; give how much it was."""
        try:
            names = await asyncio.to_thread(_clouds.names, self._folder)
        except OSError as exc:
            logger.warning("The event spool %s cannot be read: %s", self._folder, exc)
            return 0
        found = [(name, event) for name in names if (event := parse_event_name(name)) is not None]
        news = [(name, event) for name, event in found if name not in self._told]
        for _, event in sorted(news, key=lambda entry: entry[1].epoch_ms):
            self._tell(event)
        self._told = {name for name, _ in found}
        if found:
            try:
                uris = [f"{self._folder}/{name}" for name, _ in found]
                await asyncio.to_thread(_clouds.delete, uris)
            except OSError as exc:
                logger.warning("Events in %s cannot be removed: %s", self._folder, exc)
        return len(news)


class _Owner(Protocol):
    def on_workdir_lost(self) -> None:
        """Hear that another run has taken the workdir over."""


class FarLock:
    """One run owns a workdir in a cloud: an object that its owner renews.

    Who finds one that was not renewed for 90 seconds by the cloud's own clock, or whose owner was a
    process of this machine that is gone, takes it over; the cloud sees to it that only one does.
    """

    def __init__(self, run_dir: str, owner: _Owner) -> None:
        self._owner = owner
        self._owner_loop = asyncio.get_running_loop()
        self._uri = f"{run_dir}/lock"
        self._version = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock. Blocks for some requests.

        Raises:
            WorkdirLockedError: If another run has it; the message names that run.
            WorkdirError: If the workdir cannot be used.
        """
        mine = self._words()
        if not _clouds.create(self._uri, mine):
            found = _clouds.look(self._uri)
            if found is not None and found.data != mine:
                if not self._is_abandoned(found):
                    workdir = os.path.dirname(os.path.dirname(self._uri))
                    raise WorkdirLockedError(f"Another run is at work in {workdir}: {_who(found)}")
                if not _clouds.replace(self._uri, mine, found.version):
                    raise WorkdirLockedError(f"Another run has just taken {self._uri}")
            elif found is None and not _clouds.create(self._uri, mine):
                raise WorkdirLockedError(f"Another run has just taken {self._uri}")
        self._remember()
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="xqute-lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lock back, if it is held. Blocks for a request."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            found = _clouds.look(self._uri)
            if found is not None and found.version == self._version:
                _clouds.delete([self._uri])
        except OSError as exc:
            logger.warning("The lock %s stays until its lease is over: %s", self._uri, exc)

    def _tell(self) -> None:
        with suppress(RuntimeError):  # its event loop is closed
            self._owner_loop.call_soon_threadsafe(self._owner.on_workdir_lost)

    def _words(self) -> bytes:
        ticks = _protocol.process_start_ticks(os.getpid())
        return json.dumps(
            {
                "host": socket.gethostname(),
                "boot": _protocol.boot_id(),
                "pid": os.getpid(),
                "ticks": ticks,
                "id": os.urandom(8).hex(),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
        ).encode()

    def _remember(self) -> None:
        found = _clouds.look(self._uri)
        self._version = "" if found is None else found.version

    def _is_abandoned(self, found: _clouds.Found) -> bool:
        owner = _parse(found)
        here = (socket.gethostname(), _protocol.boot_id())
        if (owner.get("host"), owner.get("boot")) == here and isinstance(owner.get("pid"), int):
            return _protocol.process_start_ticks(owner["pid"]) != owner.get("ticks")
        # By the clock that wrote the lock: a probe is written now, and its time read.
        probe = f"{self._uri}.probe-{os.urandom(4).hex()}"
        _clouds.put(probe, b"")
        now = _clouds.look(probe)
        _clouds.delete([probe])
        return now is not None and now.written_s - found.written_s > _LEASE_S

    def _keep(self) -> None:
        """Renew the lock from time to time; say so if it was lost."""
        while not self._stop.wait(_RENEW_S):
            try:
                found = _clouds.look(self._uri)
                if (
                    found is None
                    or found.version != self._version
                    or not _clouds.replace(self._uri, found.data, found.version)
                ):
                    logger.error("The lock %s was taken by another run", self._uri)
                    self._tell()
                    return
                self._remember()
            except OSError as exc:
                logger.warning("The lock %s cannot be renewed: %s", self._uri, exc)


def _parse(found: _clouds.Found) -> dict[str, Any]:
    try:
        owner = json.loads(found.data)
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}


def _who(found: _clouds.Found) -> str:
    owner = _parse(found)
    return f"pid {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"


def open_far(run_dir: str) -> None:
    """See that the run's folder can be used, and mark the folders that jobs write into.

    Raises:
        WorkdirError: If not.
    """
    for folder in (run_dir, f"{run_dir}/events"):
        _clouds.check(folder)
