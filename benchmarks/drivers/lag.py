"""How late the event loop is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

PERIOD_S = 0.005


class LagSampler:
    """Within its block, is called by the loop every 5 ms and notes by how many seconds late.

    A loop that is blocked for 50 ms delays not one call but ten, of which nine would never be asked
    for; they are added, each 5 ms less late than the one before. So a quantile is one of time: "at
    99 % of all moments the loop would have answered within so many seconds".
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time() + PERIOD_S
        self._handle = self._loop.call_at(self._due_s, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._note()  # what is due and was not called yet
        self._handle.cancel()

    def _note(self) -> None:
        now_s = self._loop.time()
        while self._due_s <= now_s:
            self.lags_s.append(now_s - self._due_s)
            self._due_s += PERIOD_S
        self._handle.cancel()
        self._handle = self._loop.call_at(self._due_s, self._note)
