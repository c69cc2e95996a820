"""What a run takes when it starts, and gives back when it ends: lock, backend, spool, signals."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any, Protocol

from .. import _clouds
from ..job import Job
from ..plugin import HookTable
from ..scheduler import Scheduler
from .engine import Engine
from .far import FarEventSpool, FarLock, open_far
from .far_journal import FarJournal
from .journal import Journal
from .lock import WorkdirLock
from .signals import StopSignals
from .spool import EventSpool

__all__ = ["Session"]


class Owner(Protocol):
    """Whom a session works for."""

    def is_abandoned(self) -> bool:
        """Whether the owner's event loop is gone, so that it will never give anything back."""

    def on_job_ended(self, job: Job) -> None:
        """Hear of a job that has ended for good, after its hooks."""

    def on_job_released(self, job: Job) -> None:
        """Hear of a job that is let go of and has not ended."""

    def on_halt(self, job: Job) -> None:
        """Hear of the job whose failure is to end the run."""

    def on_stop_signal(self, sig: signal.Signals) -> None:
        """Hear of a signal that is to stop the run."""

    def on_workdir_lost(self) -> None:
        """Hear that another run has taken the workdir over."""


class Session:
    """One run over a workdir, from its first job to its last."""

    def __init__(
        self,
        owner: Owner,
        engine: Engine,
        journal: Journal,
        spool: EventSpool | FarEventSpool,
        lock: WorkdirLock | FarLock,
    ) -> None:
        self.engine = engine
        self._journal = journal
        self._spool = spool
        self._lock = lock
        self._signals = StopSignals(asyncio.get_running_loop(), owner.on_stop_signal)

    @classmethod
    async def open(
        cls, owner: Owner, scheduler: Scheduler, hooks: HookTable, **how: Any
    ) -> Session:
        """Take the workdir, and begin to work.

        Args:
            owner: Who is told.
            scheduler: The backend.
            hooks: The plugins.
            how: Further keywords of the `Engine`.

        Raises:
            WorkdirError: If the workdir cannot be used; `WorkdirLockedError`: another run has it.
        """
        run_dir = f"{scheduler.workdir}/.run"
        is_far = _clouds.is_far(run_dir)
        async with AsyncExitStack() as taken:
            lock = await _take(run_dir, owner)
            taken.push_async_callback(_give_back, lock)
            await scheduler.start()
            taken.push_async_callback(scheduler.close)
            journal, ledger = await (FarJournal if is_far else Journal).open(
                f"{run_dir}/journal", scheduler.run_id, durable=scheduler.outlives_this_machine
            )
            taken.push_async_callback(journal.close)
            engine = Engine(
                scheduler,
                hooks,
                journal=journal,
                ledger=ledger,
                on_ended=owner.on_job_ended,
                on_released=owner.on_job_released,
                on_halt=owner.on_halt,
                **how,
            )
            events = f"{scheduler.local_workdir}/.run/events"
            spool: EventSpool | FarEventSpool
            if _clouds.is_far(events):
                spool = FarEventSpool(events, engine.on_event, scheduler.recheck_interval)
            else:
                spool = EventSpool(events, engine.on_event)
            if scheduler.leaves_events:
                spool.start()
            taken.pop_all()  # `close` gives it back
        scheduler.driver = engine
        session = cls(owner, engine, journal, spool, lock)
        session._signals.install()
        return session

    async def close(self) -> None:
        """Give everything back. Jobs that still run, run on."""
        scheduler = self.engine.scheduler
        try:
            await self.engine.close()
            await self._spool.stop()
            await scheduler.close()
        finally:
            await self._journal.close()
            self._signals.restore()
            scheduler.driver = None
            await _give_back(self._lock)


async def _take(run_dir: str, owner: Owner) -> WorkdirLock | FarLock:
    """Make this run the owner of the workdir."""
    if _clouds.is_far(run_dir):
        await asyncio.to_thread(open_far, run_dir)
        far_lock = FarLock(run_dir, owner)
        await asyncio.to_thread(far_lock.acquire)
        return far_lock
    lock = WorkdirLock(run_dir, owner)
    lock.acquire()
    return lock


async def _give_back(lock: WorkdirLock | FarLock) -> None:
    if isinstance(lock, FarLock):
        await asyncio.to_thread(lock.release)
    else:
        lock.release()
