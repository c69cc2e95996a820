"""How late the event loop is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

PERIOD_S = 0.005


class LagSampler:
    """Asks the loop every 5 ms to be woken and notes by how many seconds it came late.

    A loop that is blocked for 50 ms delays not one waking but ten, of which nine would never be
    asked for; they are added, each 5 ms less late than the one before. So a quantile is one of
    time: "at 99 % of all moments the loop would have answered within so many seconds".
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._sample())
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await asyncio.sleep(2 * PERIOD_S)  # so that a block that ends just now is noted
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + PERIOD_S
        while True:
            woken: asyncio.Future[None] = loop.create_future()
            loop.call_at(due, woken.set_result, None)
            await woken
            now = loop.time()
            while due <= now:
                self.lags_s.append(now - due)
                due += PERIOD_S
