"""Asks Batch about many jobs with few requests, and judges what it says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final, TypeVar

from xqute.defaults import JobCause
from xqute.scheduler import BackendState, Phase

from .client import BatchClient, BatchJob, BatchTask
from .groups import NativeId
from .parse import ACTIVE_TASK_STATES, parse_state, parse_task_state

__all__ = ["Asking", "for_each", "tasks_left"]

K = TypeVar("K")
V = TypeVar("V")

#: What is done at once, where it is done for each.
_AT_ONCE: Final = 8


class Asking:
    """What Batch says of jobs, and for how long it has said so.

    Attributes:
        cancelled: The Batch jobs that we have cancelled: where Batch says CANCELLED of one, nobody
            else has done it.
    """

    def __init__(self) -> None:
        self.cancelled: set[str] = set()
        #: Since when (loop time) Batch says that a job is over whose own words are not there yet.
        self._over_since_s: dict[NativeId, float] = {}

    async def ask(
        self, client: BatchClient, natives: Iterable[NativeId], runs: Iterable[str], grace_s: float
    ) -> dict[NativeId, BackendState]:
        """Give the states of jobs.

        One request tells of a thousand Batch jobs that have not ended, one of each that has; and
        one of a thousand tasks of a group that runs or has ended.

        Args:
            client: The connection.
            natives: The jobs.
            runs: Those that they are of.
            grace_s: Seconds for which a job that is over is GONE before more is said of it: what it
                has told of its end may be on its way through the mount still.

        Raises:
            SchedulerError: If Batch does not say.
        """
        natives = set(natives)
        found = await self._look_up(client, {native.job_id for native in natives}, runs)
        groups = {native.job_id for native in natives if native.place is not None}
        begun = [job_id for job_id in groups if (at := found[job_id]) and at.state != "QUEUED"]
        tasks = {
            job_id: {task.place: task for task in them}
            for job_id, them in (await for_each(begun, client.list_tasks)).items()
        }
        return {
            native: self._judge(native, found[native.job_id], tasks.get(native.job_id, {}), grace_s)
            for native in natives
        }

    @staticmethod
    async def _look_up(
        client: BatchClient, ids: set[str], runs: Iterable[str]
    ) -> dict[str, BatchJob | None]:
        found: dict[str, BatchJob | None] = {}
        if len(ids) > 1:
            active = await client.list_jobs(runs, active=True)
            found.update({job.job_id: job for job in active if job.job_id in ids})
        found.update(await for_each(ids - found.keys(), client.get))
        return found

    def _judge(
        self,
        native: NativeId,
        found: BatchJob | None,
        tasks: Mapping[int, BatchTask],
        grace_s: float,
    ) -> BackendState:
        """Give what Batch's word means."""
        if found is None:
            return BackendState(Phase.GONE, reason="Batch has no such job")
        if native.place is None:
            state = parse_state(found.state, found.events)
        else:
            task = tasks.get(native.place, BatchTask(native.place, "PENDING", ()))
            state = parse_task_state(task.state, task.events, found.state, found.events)
            if task.state == "SUCCEEDED":
                return state
        if state.phase is Phase.GONE and native.job_id not in self.cancelled:
            words = state.reason or "cancelled"
            return BackendState(Phase.ENDED, None, JobCause.REQUESTED, f"not by this run: {words}")
        if state.phase is not Phase.ENDED or state.cause is not None:
            return state
        now_s = asyncio.get_running_loop().time()
        since_s = self._over_since_s.setdefault(native, now_s)
        if now_s - since_s < grace_s:
            return BackendState(Phase.GONE, reason=state.reason)
        return state


def tasks_left(native: NativeId, tasks: Iterable[BatchTask]) -> list[NativeId]:
    """Give the tasks of a group that have not ended, as far as Batch says."""
    ended = {task.place for task in tasks if task.state not in ACTIVE_TASK_STATES}
    return [native._replace(place=place) for place in range(native.n_tasks) if place not in ended]


async def for_each(keys: Iterable[K], work: Callable[[K], Awaitable[V]]) -> dict[K, V]:
    """Give what `work` gives for each, some at a time. The first error ends all."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def do(key: K) -> tuple[K, V]:
        async with room:
            return key, await work(key)

    tasks = [asyncio.ensure_future(do(key)) for key in keys]
    try:
        return dict(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
