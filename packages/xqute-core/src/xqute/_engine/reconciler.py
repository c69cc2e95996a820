"""Asks the backend, in bulk, about jobs that nothing was heard of for a while."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from .. import _protocol
from ..job import Job
from ..scheduler import BackendState, Phase
from ..utils import logger
from .flight import Flight
from .run import Run
from .settle import read_start

__all__ = ["Reconciler"]

#: How long a backend has to answer.
_ANSWER_TIMEOUT_S = 60.0
#: Checks that fall due within this are made together.
_TOGETHER_S = 0.05


class Reconciler:
    """Keeps for each attempt when it is to be asked about; news put it off.

    The first question comes after the scheduler's `first_recheck_s`, later ones after growing
    intervals up to `recheck_interval`, with jitter.

    Args:
        run: The run, whose scheduler is asked.
        report: Told of each answer.
    """

    def __init__(self, run: Run, report: Callable[[Job, BackendState], None]) -> None:
        self._scheduler = run.scheduler
        self._files = run.files
        self._report = report
        self._due: list[tuple[float, int, Flight]] = []
        self._serial = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self._is_closed = False

    def add(self, flight: Flight, in_s: float | None = None) -> None:
        """Ask about an attempt after `in_s` seconds; None: in its turn."""
        if in_s is None:
            first_s = min(self._scheduler.first_recheck_s, self._scheduler.recheck_interval)
            in_s = min(first_s * 2.0 ** min(flight.checks, 30), self._scheduler.recheck_interval)
            in_s *= random.uniform(0.9, 1.1)  # noqa: S311  # jitter is no secret
        flight.due_s = asyncio.get_running_loop().time() + in_s
        heapq.heappush(self._due, (flight.due_s, next(self._serial), flight))
        # A few at a time: most attempts end before they are due, and none may pile up here.
        for _ in range(2):
            if _is_stale(self._due[0]):
                heapq.heappop(self._due)
        self._set_timer()

    def _set_timer(self) -> None:
        """Wake up when the first is due, unless there is a question under way."""
        if self._asking is not None or not self._due:
            return
        due_s = self._due[0][0]
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due_s, self._wake_up)

    def _wake_up(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        flights = self._take_due(loop.time() + _TOGETHER_S)
        if flights:
            self._asking = loop.create_task(self._ask(flights))
            self._asking.add_done_callback(partial(self._on_asked, flights))
        else:
            self._set_timer()

    def _on_asked(self, flights: list[Flight], task: asyncio.Task[None]) -> None:
        self._asking = None
        for flight in flights:
            if flight.due_s is None and not flight.is_closed and not self._is_closed:
                self.add(flight)  # the question was cancelled
        self._set_timer()
        if not task.cancelled():
            task.result()

    def _take_due(self, until_s: float) -> list[Flight]:
        flights = []
        while self._due and self._due[0][0] <= until_s:
            entry = heapq.heappop(self._due)
            if not _is_stale(entry):
                entry[2].due_s = None
                flights.append(entry[2])
        return flights

    async def _ask(self, flights: list[Flight]) -> None:
        states: dict[Job, BackendState] = {}
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                states.update(await self._find([f for f in _open(flights) if f.job.jid is None]))
                known = [f.job for f in _open(flights) if f.job.jid is not None]
                if known:
                    states.update(await self._scheduler.poll_jobs(known))
        except Exception as exc:  # noqa: BLE001  # a backend may raise anything: unknown, then
            logger.warning(
                "%s does not tell about %d jobs: %s", self._scheduler.name, len(flights), exc
            )
        for flight in _open(flights):
            flight.checks += 1
            self.add(flight)
            state = states.get(flight.job)
            if state is not None:
                self._report(flight.job, state)

    async def _find(self, flights: list[Flight]) -> dict[Job, BackendState]:
        """Look for attempts that were accepted without our being told under which id.

        One that has begun may have left its id in its start claim. Gives what is told of those
        that have none now.
        """
        if not flights:
            return {}
        keys = {self._scheduler.submission_key(flight.job): flight for flight in flights}
        found = await self._scheduler.find_submitted(keys)
        states = {}
        for key, flight in keys.items():
            claim = None if key in found else await self._read_start(flight)
            if flight.is_closed:
                continue
            if key in found:
                flight.job.jid = found[key]
            elif claim is not None and not claim.revoked and claim.native_id != "-":
                flight.job.jid = claim.native_id
            else:
                may_live = claim is not None and _protocol.claim_is_alive(claim) is not False
                states[flight.job] = BackendState(Phase.PENDING if may_live else Phase.GONE)
        return states

    async def _read_start(self, flight: Flight) -> _protocol.StartClaim | None:
        """Give who has started an attempt; None: nobody, as far as can be seen."""
        if not self._scheduler.uses_wrapper:
            return None
        return await self._files.call(flight.job, partial(read_start, flight))

    async def close(self) -> None:
        """Ask no more."""
        self._is_closed = True
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])


def _open(flights: Iterable[Flight]) -> Iterator[Flight]:
    """Those that are not over: the job of one that is may be in another attempt by now."""
    return (flight for flight in flights if not flight.is_closed)


def _is_stale(entry: tuple[float, int, Flight]) -> bool:
    """Whether an entry of the heap no longer counts: it is over, or due at another time."""
    due_s, _, flight = entry
    return flight.is_closed or flight.due_s != due_s
