"""How late the event loop is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

PERIOD_S = 0.005


class LagSampler:
    """Within its block, asks the loop again and again to be called in 5 ms, and notes the lateness.

    Attributes:
        lags_s: By how many seconds each call came late, in order.
    """

    def __init__(self) -> None:
        self.lags_s: list[float] = []

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._ask()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._loop.time() >= self._due_s:
            self._note()
        self._handle.cancel()

    def _ask(self) -> None:
        self._due_s = self._loop.time() + PERIOD_S
        self._handle = self._loop.call_at(self._due_s, self._note)

    def _note(self) -> None:
        self.lags_s.append(self._loop.time() - self._due_s)
        self._handle.cancel()
        self._ask()

    def by_time_s(self) -> list[float]:
        """The lags that calls would have had that were asked for every 5 ms, come what may.

        A loop that is blocked for 50 ms delays not one such call but ten. So a quantile of these is
        one of time: "at 99 % of all moments the loop would have answered within so many seconds".
        """
        return [
            lag_s - missed * PERIOD_S
            for lag_s in self.lags_s
            for missed in range(int(lag_s / PERIOD_S) + 1)
        ]
