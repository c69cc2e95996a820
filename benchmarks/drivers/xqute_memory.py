"""Hold many jobs in memory, waiting and then done, and tell how many bytes each takes.

A plugin holds every submission back until all jobs are fed and the waiting ones are measured.
Prints `waiting_b` and `done_b`, bytes a job on top of what the process had before the first feed:
of resident memory, or with --trace of what Python has allocated.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import sys
import tracemalloc

from xqute import Job, JobOutcome, Scheduler, Xqute
from xqute.plugin import plugin
from xqute.testing import MemoryScheduler

FORKS = 100


class Gate:
    """A plugin that lets no job be submitted before `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    @plugin.impl
    async def on_job_submitting(self, scheduler: Scheduler, job: Job) -> None:
        """Wait for the gate."""
        await self.open.wait()


def _memory_b() -> int:
    gc.collect()
    if tracemalloc.is_tracing():
        return tracemalloc.get_traced_memory()[0]
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except FileNotFoundError:  # no /proc: the largest so far, in bytes on macOS
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


async def _run(jobs: int, workdir: str) -> dict[str, float]:
    gate = Gate()
    xq = Xqute(MemoryScheduler, forks=FORKS, workdir=workdir, plugins=[gate])
    before_b = _memory_b()
    for index in range(jobs):
        await xq.feed(("echo", str(index)))
    waiting_b = _memory_b() - before_b
    if any(job.outcome is not None for job in xq.jobs):
        sys.exit("a job ended before the gate was open")
    gate.open.set()
    await xq.run_until_complete()
    done_b = _memory_b() - before_b
    succeeded = sum(job.outcome is JobOutcome.SUCCEEDED for job in xq.jobs)
    if succeeded != jobs:
        sys.exit(f"only {succeeded} of {jobs} jobs succeeded")
    return {"waiting_b": waiting_b / jobs, "done_b": done_b / jobs}


async def _measure(options: argparse.Namespace) -> dict[str, float]:
    await _run(FORKS, "warm")  # what is loaded at the first job is not a job's memory
    if options.trace:
        tracemalloc.start()
    return await _run(options.jobs, "jobs")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--trace", action="store_true")
    print(json.dumps(asyncio.run(_measure(parser.parse_args()))))
