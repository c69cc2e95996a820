"""Resume a run of many jobs that have all ended, and tell what that took.

With --prepare: leave such a run in the workdir, and tell `journal_b`, the bytes of its journal. Its
jobs are in-memory ones, for their journal is that of others; each gets a folder.

Without: feed the same jobs to the local scheduler with `resume=True` and print `seconds` (wall,
from before the first feed until `run_until_complete` has returned), `cpu_s` (user and system time
of this process in that time) and `read_s` (reading the journal alone, before and apart from that).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any

from xqute import Xqute
from xqute._engine.ledger import Ledger
from xqute.testing import MemoryScheduler

FOLDER = "jobs/.run/journal"
COMMAND = ("true",)


async def _prepare(jobs: int) -> dict[str, Any]:
    xq = Xqute(MemoryScheduler, forks=100, workdir="jobs")
    for index in range(jobs):
        os.makedirs(f"jobs/{index}")
        await xq.feed(COMMAND)
    await xq.run_until_complete()
    return {"journal_b": sum(entry.stat().st_size for entry in os.scandir(FOLDER))}


async def _resume(jobs: int) -> dict[str, Any]:
    started = time.perf_counter()
    Ledger.read(FOLDER)
    read_s = time.perf_counter() - started
    xq = Xqute("local", workdir="jobs", resume=True)
    started, cpu_s = time.perf_counter(), time.process_time()
    for _ in range(jobs):
        await xq.feed(COMMAND)
    await xq.run_until_complete()
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_s
    adopted = sum(job.adopted for job in xq.jobs)
    if adopted != jobs:
        sys.exit(f"only {adopted} of {jobs} jobs were adopted")
    return {"seconds": seconds, "cpu_s": cpu_s, "read_s": read_s}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--prepare", action="store_true")
    options = parser.parse_args()
    work = _prepare if options.prepare else _resume
    print(json.dumps(asyncio.run(work(options.jobs))))
