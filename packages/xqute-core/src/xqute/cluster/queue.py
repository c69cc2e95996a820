"""The queue of a cluster as it was seen last, and when it may be looked at again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple

from ..errors import SchedulerError
from ..scheduler import BackendState, Phase

__all__ = ["Queue", "QueueRow", "Snapshot", "has_ended"]

#: Between two looks while something is about to end, and how long it may be so.
_HURRY_INTERVAL_S, _HURRY_S = 1.0, 60.0
#: Between two looks at a queue that does not answer.
_MOST_S = 60.0


class QueueRow(NamedTuple):
    """One job in the queue of a cluster.

    Attributes:
        submission_id: The id of what was submitted: the array's, for its tasks.
        place: Which task of its array it is, from 0; None: of none.
        name: The name of the submission.
        state: Where it is. An exit code, cause and reason as far as the queue tells them.
        waits_for_ever: Whether it cannot start unless somebody changes something; the reason says.
    """

    submission_id: str
    place: int | None
    name: str
    state: BackendState
    waits_for_ever: bool = False


def has_ended(row: QueueRow | None) -> bool:
    """Whether the queue has a job as ended: that it stays, however old the look."""
    return row is not None and row.state.phase is Phase.ENDED


class Snapshot(NamedTuple):
    """All jobs of the user, by native id, as they were at `began_s` (monotonic) or after."""

    began_s: float
    rows: Mapping[str, QueueRow]


class Queue:
    """Looks at the queue for many at once, and not more often than it must.

    Args:
        read: What asks the backend.

    Attributes:
        last: What was seen last; None: nothing yet.
    """

    def __init__(self, read: Callable[[], Awaitable[Mapping[str, QueueRow]]]) -> None:
        self._read = read
        self.last: Snapshot | None = None
        self._asked_s = float("-inf")
        self._n_failures = 0
        #: By native id: since when a look counts, and until when there is a hurry.
        self._touched: dict[str, tuple[float, float]] = {}
        self._lock = asyncio.Lock()
        self._n_users = 0

    def touch(self, jid: str, *, hurry: bool = False) -> None:
        """Something was done to a job: what was seen before does not count for it.

        Args:
            jid: Its native id.
            hurry: Whether its end is near and waited for.
        """
        now_s = time.monotonic()
        _, hurry_until_s = self._touched.get(jid, (now_s, float("-inf")))
        if hurry and hurry_until_s < 0:
            hurry_until_s = now_s + _HURRY_S
        self._touched[jid] = (now_s, hurry_until_s)

    def is_fresh(self, snapshot: Snapshot, jid: str) -> bool:
        """Whether what is seen of a job there is not out of date."""
        return jid not in self._touched or self._touched[jid][0] <= snapshot.began_s

    async def read(self) -> Snapshot:
        """Look now, whatever else goes on.

        Raises:
            SchedulerError: If there is no answer.
        """
        began_s = self._asked_s = time.monotonic()
        try:
            rows = await self._read()
        except SchedulerError:
            self._n_failures += 1
            raise
        self._n_failures = 0
        snapshot = Snapshot(began_s, rows)
        if self.last is None or self.last.began_s < began_s:
            self.last = snapshot
            self._touched = {
                jid: (touched_s, until_s)
                for jid, (touched_s, until_s) in self._touched.items()
                if touched_s > began_s or until_s > began_s
            }
        return snapshot

    async def recent(self, max_age_s: float, jids: Iterable[str]) -> Snapshot:
        """Give what was seen less than `max_age_s` ago, if it counts for these jobs, or look now.

        Raises:
            SchedulerError: If there is no answer.
        """
        if self._n_users == 0:
            self._lock = asyncio.Lock()  # of the event loop that runs now
        self._n_users += 1
        try:
            async with self._lock:
                last = self.last
                if last is None or time.monotonic() - last.began_s > max_age_s:
                    return await self.read()
                if not all(self.is_fresh(last, jid) for jid in jids):
                    return await self.read()
                return last
        finally:
            self._n_users -= 1

    async def look(self, jids: Iterable[str], interval_s: float) -> Snapshot | None:
        """Look once in `interval_s` at the most, sooner if there is a hurry; else tell the last.

        A queue that does not answer is asked ever less often.

        Returns:
            What was seen last; None: nothing yet, and it is too early to look.

        Raises:
            SchedulerError: If there is no answer.
        """
        now_s = time.monotonic()
        jids = list(jids)
        short_s = min(_HURRY_INTERVAL_S, interval_s)
        in_a_hurry = any(self._touched.get(jid, (0.0, 0.0))[1] > now_s for jid in jids)
        interval_s = short_s if in_a_hurry else interval_s
        last = self.last
        counts = last is not None and all(self.is_fresh(last, jid) for jid in jids)
        if last is not None and counts and now_s - last.began_s < interval_s:
            return last
        pause_s = min(interval_s * 2.0 ** min(self._n_failures, 10), max(_MOST_S, interval_s))
        pause_s *= random.uniform(1.0, 1.1)  # noqa: S311  # jitter is no secret
        wait_s = self._asked_s + pause_s - now_s
        if wait_s > 1.2 * short_s:
            return last
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        return await self.read()
