"""A plugin that notes every hook that is called for a job."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

from ..defaults import JobStatus
from ..job import Job
from ..plugin import plugin
from ..scheduler import Scheduler

__all__ = ["HookCall", "HookRecorder"]

_serial = itertools.count()


class HookCall(NamedTuple):
    """One call of a hook, and the job as the hook saw it."""

    hook: str
    index: int  # type: ignore[assignment]  # in the place of tuple.index, which nobody needs here
    trial: int
    status: JobStatus


class HookRecorder:
    """Give it to `Xqute(plugins=[...])`; it objects to nothing.

    Attributes:
        calls: What was called, in order.
    """

    priority = 0

    def __init__(self) -> None:
        self.name = f"recorder-{next(_serial)}"
        self.calls: list[HookCall] = []

    def of(self, job: Job) -> list[str]:
        """Give the hooks that were called for a job, in order, without "on_job_"."""
        return [call.hook.removeprefix("on_job_") for call in self.calls if call.index == job.index]

    def counts(self, hook: str) -> dict[int, int]:
        """Give how often a hook was called, by index of the job."""
        counts: defaultdict[int, int] = defaultdict(int)
        for call in self.calls:
            counts[call.index] += call.hook == hook
        return {index: count for index, count in counts.items() if count}

    def _note(self, hook: str, job: Job) -> None:
        self.calls.append(HookCall(hook, job.index, job.trial_count, job.status))

    @plugin.impl
    async def on_job_init(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_init", job)

    @plugin.impl
    async def on_job_queued(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_queued", job)

    @plugin.impl
    async def on_job_submitting(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_submitting", job)

    @plugin.impl
    async def on_job_submitted(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_submitted", job)

    @plugin.impl
    async def on_job_started(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_started", job)

    @plugin.impl
    async def on_job_killing(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_killing", job)

    @plugin.impl
    async def on_job_killed(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_killed", job)

    @plugin.impl
    async def on_job_failed(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_failed", job)

    @plugin.impl
    async def on_job_succeeded(self, scheduler: Scheduler, job: Job) -> None:
        """Note it."""
        self._note("on_job_succeeded", job)
