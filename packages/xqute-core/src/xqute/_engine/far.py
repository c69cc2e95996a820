"""The run's own folder in a cloud: its event spool is a prefix, its lock an object."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, Protocol

from .. import _clouds
from .._ownership import Owner
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
    Whose it is its content says, and nothing else: an answer may be lost, a request come twice.
    """

    #: Those of this process that are held, or about to be.
    _held: ClassVar[set[FarLock]] = set()

    def __init__(self, run_dir: str, owner: _Owner) -> None:
        self._owner = owner
        self._owner_loop = asyncio.get_running_loop()
        self._uri = f"{run_dir}/lock"
        self._mine = b""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock. Blocks for some requests.

        Raises:
            WorkdirLockedError: If another run has it; the message names that run.
            WorkdirError: If the workdir cannot be used.
        """
        for lock in list(self._held):
            if lock._uri == self._uri and lock._owner_loop.is_closed():
                lock.release()  # its run can never end by itself
        me = Owner.of_this_process(has_flock=False)
        self._mine = json.dumps({**me._asdict(), "id": os.urandom(8).hex()}).encode()
        self._held.add(self)
        try:
            self._take()
        except BaseException:
            self._held.discard(self)
            raise
        self._stop.clear()
        self._thread = threading.Thread(target=self._keep, name="xqute-lock", daemon=True)
        self._thread.start()

    def _take(self) -> None:
        if _clouds.create(self._uri, self._mine):
            return
        found = _clouds.look(self._uri)
        if found is None:
            is_taken = _clouds.create(self._uri, self._mine)
        elif found.data == self._mine:
            return
        elif self._is_abandoned(found):
            is_taken = _clouds.replace(self._uri, self._mine, found.version)
        else:
            workdir = os.path.dirname(os.path.dirname(self._uri))
            who = _parse(found) or "a process that has not said who it is"
            raise WorkdirLockedError(f"Another run is at work in {workdir}: {who}")
        if not is_taken and not self._is_mine():
            raise WorkdirLockedError(f"Another run has just taken {self._uri}")

    def release(self) -> None:
        """Give the lock back, if it is held. Blocks for some requests."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None
        try:
            if self._is_mine():
                _clouds.delete([self._uri])
        except OSError as exc:
            logger.warning("The lock %s stays until its lease is over: %s", self._uri, exc)
        self._held.discard(self)

    def _tell(self) -> None:
        with suppress(RuntimeError):  # its event loop is closed
            self._owner_loop.call_soon_threadsafe(self._owner.on_workdir_lost)

    def _is_mine(self) -> bool:
        return _clouds.get(self._uri) == self._mine

    def _is_abandoned(self, found: _clouds.Found) -> bool:
        if any(lock._mine == found.data for lock in list(self._held)):
            return False
        owner = _parse(found)
        me = Owner.of_this_process(has_flock=False)
        if owner is not None and owner._replace(since_s=me.since_s) == me:
            return True  # what a request has left that this process got no answer to
        alive = None if owner is None else owner.is_alive()
        if alive is not None:
            return not alive
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
                is_mine = found is not None and found.data == self._mine
                if found is not None and is_mine:
                    is_renewed = _clouds.replace(self._uri, self._mine, found.version)
                    is_mine = is_renewed or self._is_mine()
            except OSError as exc:
                logger.warning("The lock %s cannot be renewed: %s", self._uri, exc)
                continue
            if not is_mine:
                logger.error("The lock %s was taken by another run", self._uri)
                self._tell()
                return

    @classmethod
    def _forget_all(cls) -> None:
        """Hold nothing: for a process that was forked off the owner."""
        for lock in cls._held:
            lock._thread = None
        cls._held.clear()


os.register_at_fork(after_in_child=FarLock._forget_all)


def _parse(found: _clouds.Found) -> Owner | None:
    """Give who has written a lock; None: it is not what we write."""
    try:
        words = json.loads(found.data)
        del words["id"]
        return Owner(**words) if isinstance(words["pid"], int) else None
    except (ValueError, TypeError, KeyError):
        return None


def open_far(run_dir: str) -> None:
    """See that the run's folder can be used, and mark the folders that jobs write into.

    Raises:
        WorkdirError: If not.
    """
    for folder in (run_dir, f"{run_dir}/events"):
        _clouds.check(folder)
