"""Requests that come while one is at work are dealt with together, in the next round."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from ..job import Job

__all__ = ["Rounds"]


class Rounds:
    """Does work for jobs, one round at a time.

    Args:
        work: Does one round.
    """

    def __init__(self, work: Callable[[Sequence[Job]], Awaitable[None]]) -> None:
        self._work = work
        self._waiting: dict[Job, None] = {}
        self._lock = asyncio.Lock()
        self._n_users = 0

    async def join(self, jobs: Iterable[Job]) -> None:
        """Return when a round that began after this call is done for these jobs.

        Raises what the round raises, in one of those who have asked for it.
        """
        if self._n_users == 0:
            self._lock = asyncio.Lock()  # of the event loop that runs now
        self._n_users += 1
        self._waiting.update(dict.fromkeys(jobs))
        try:
            async with self._lock:
                if self._waiting:
                    together, self._waiting = list(self._waiting), {}
                    await self._work(together)
        finally:
            self._n_users -= 1
