"""What a server has room for, and which shells of its agent are busy."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable

from xqute import Job, Resources, logger
from xqute.machine import Holding, Machine

from .entry import Entry

__all__ = ["Lanes", "Places"]

#: Starts that are on their way and not acknowledged, at the most.
_MOST_UNACKNOWLEDGED = 16
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 60.0


class Lanes:
    """Which shells of an agent are busy with which attempts; each has one at a time."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._taken: dict[Entry, int] = {}

    def take(self, entry: Entry) -> int:
        """Give the number of a shell that has nothing to do."""
        lane = heapq.heappop(self._free) if self._free else len(self._taken)
        self._taken[entry] = lane
        return lane

    def free(self, entry: Entry) -> None:
        """The end of an attempt was told: by its shell, unless another one had to be asked."""
        if not entry.missed_s and (lane := self._taken.pop(entry, None)) is not None:
            heapq.heappush(self._free, lane)


class Places:
    """The places for jobs on one server: who has them, and whether more can be had.

    Args:
        name: What the user calls the server.
        changed: Called when jobs may be placed that could not be before.

    Attributes:
        load: How many are taken.
        n_starting: How many of them by jobs that are on their way.
    """

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self.load = 0
        self.n_starting = 0
        self._name = name
        self._changed = changed
        self._held: dict[Job, Holding] = {}
        self._loop = asyncio.get_running_loop()
        self._n_refusals = 0
        self._aside_until_s = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether as many jobs are on their way there as may be."""
        return self.n_starting >= _MOST_UNACKNOWLEDGED

    @property
    def is_aside(self) -> bool:
        """Whether it gets no jobs for now, because it has refused some."""
        return self._loop.time() < self._aside_until_s

    def try_fit(self, wanted: Resources | None, machine: Machine | None) -> tuple[str, ...] | None:
        """Give the graphics processors that a job would get; None: there is no room for it."""
        if wanted is None:
            return ()
        return None if machine is None else machine.fit(wanted, self._held.values())

    def take(self, job: Job, wanted: Resources | None, gpus: tuple[str, ...]) -> None:
        """Give a job a place; it is on its way from now on."""
        self.take_running()
        self.n_starting += 1
        if wanted is not None:
            job.gpus = gpus
            self._held[job] = Holding(wanted, gpus)

    def take_running(self) -> None:
        """Give a place to a job that is there already."""
        self.load += 1

    def end_starting(self) -> None:
        """A job is on its way no more, one way or the other."""
        self.n_starting -= 1
        self._changed()

    def free(self, job: Job) -> None:
        """Give back what a job had."""
        self.load -= 1
        self._held.pop(job, None)
        self._changed()

    def note_refusal(self, words: str) -> None:
        """The server has refused a job: it is set aside for a while, longer each time."""
        if self.is_aside:
            return  # one that was on its way already
        self._n_refusals += 1
        wait_s = min(_FIRST_PAUSE_S * 2.0**self._n_refusals, _LONGEST_PAUSE_S)
        self._aside_until_s = self._loop.time() + wait_s
        self._loop.call_later(wait_s, self._changed)
        logger.warning(
            "ssh: server %r refuses jobs, and gets none for %.0f s: %s", self._name, wait_s, words
        )

    def note_success(self) -> None:
        """The server has taken a job."""
        self._n_refusals = 0

    def forget_refusals(self) -> None:
        """It may be another one now."""
        self._n_refusals, self._aside_until_s = 0, 0.0
