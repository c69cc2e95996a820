"""Ends jobs: TERM in bulk, a grace period, KILL for those that stay, and a check."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from ..job import Job
from ..scheduler import Scheduler
from ..utils import logger
from .flight import Flight
from .reconciler import Reconciler

__all__ = ["Killer"]

#: How long a backend has at least to answer that it kills.
_ANSWER_TIMEOUT_S = 2.0


class Killer:
    """Kills attempts; that they have ended is heard of like any other end.

    Args:
        scheduler: The backend.
        reconciler: Asked to look after the killed ones closely.
        give_up: Told of an attempt that has not ended within `kill_timeout_s`.
    """

    def __init__(
        self, scheduler: Scheduler, reconciler: Reconciler, give_up: Callable[[Flight], None]
    ) -> None:
        self._scheduler = scheduler
        self._reconciler = reconciler
        self._give_up = give_up
        self._tasks: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[None]] = set()
        self._is_closed = False

    def kill(self, flights: list[Flight]) -> None:
        """Ask the attempts to end; they have the scheduler's `kill_grace_s` for it."""
        self._spawn(flights, self._kill)

    def force(self, flights: list[Flight]) -> None:
        """End the attempts without grace."""
        self._spawn(flights, partial(self._send, force=True))

    def _spawn(
        self, flights: list[Flight], work: Callable[[list[Flight]], Coroutine[Any, Any, None]]
    ) -> None:
        task = asyncio.get_running_loop().create_task(work(flights))
        self._tasks.add(task)
        task.add_done_callback(partial(self._on_done, flights))

    def _on_done(self, flights: list[Flight], task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()
        elif not self._is_closed:
            # A loop that ends cancels every task, but those jobs still have to be ended.
            self._spawn(flights, self._kill)

    async def _kill(self, flights: list[Flight]) -> None:
        # One that is only just being submitted cannot be asked yet.
        await self._send(flights, force=False)
        grace_s, timeout_s = self._scheduler.kill_grace_s, self._scheduler.kill_timeout_s
        await self._watch(flights, grace_s)
        await self._send(flights, force=True)
        await self._watch(flights, max(timeout_s - grace_s, 1.0))
        for flight in flights:
            if not flight.is_closed:
                self._give_up(flight)

    async def _send(self, flights: list[Flight], *, force: bool) -> None:
        jobs = [flight.job for flight in flights if not flight.is_closed]
        if not jobs:
            return
        asking = asyncio.get_running_loop().create_task(self._ask(jobs, force=force))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)
        # One that does not answer must not keep us from the next step.
        await asyncio.wait([asking], timeout=max(self._scheduler.kill_grace_s, _ANSWER_TIMEOUT_S))

    async def _ask(self, jobs: list[Job], *, force: bool) -> None:
        try:
            await self._scheduler.kill_jobs(jobs, force)
        except* Exception as group:  # noqa: BLE001  # what counts is whether they end
            for exc in group.exceptions:
                logger.warning("%s: a kill went wrong: %s", self._scheduler.name, exc)

    async def _watch(self, flights: list[Flight], for_s: float) -> None:
        """Return when all have ended, or time is up; have the backend asked, ever less often."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        pause_s = 0.05
        while True:
            left = [flight for flight in flights if not flight.is_closed]
            left_s = until_s - loop.time()
            if not left or left_s <= 0:
                return
            for flight in left:
                self._reconciler.add(flight, 0.0)
            await asyncio.sleep(min(pause_s, left_s))
            pause_s = min(pause_s * 2, 5.0)

    async def close(self) -> None:
        """Leave off; kills that the backend is at work on may be finished."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._asking:
            await asyncio.wait(self._asking, timeout=self._scheduler.kill_timeout_s)
        for task in self._asking:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
