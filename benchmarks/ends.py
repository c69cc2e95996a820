"""When ends of jobs are told."""

from __future__ import annotations

import time

from xqute import Job, Scheduler
from xqute.plugin import plugin


class Ends:
    """A plugin that notes when jobs are told to have succeeded, in seconds since the epoch."""

    name = "ends"

    def __init__(self) -> None:
        self.told_s: dict[int, float] = {}

    @plugin.impl
    async def on_job_succeeded(self, scheduler: Scheduler, job: Job) -> None:
        """Note the time."""
        self.told_s[job.index] = time.time()
