"""Feed many equal commands to xqute, wait for all, and tell what it took.

Prints `seconds` (wall, from the first feed until `run_until_complete` returned), `cpu_s` (user and
system time of this process alone in that time, without its children), and with --lag `lags_ms` and
`lags_by_time_ms`: see `LagSampler`. With --no-journal nothing is written there.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shlex
import sys
import time
from contextlib import nullcontext
from typing import Any

from lag import LagSampler

from xqute import JobOutcome, Scheduler, Xqute


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _scheduler(name: str) -> str | type[Scheduler]:
    if name != "memory":
        return name
    from xqute.testing import MemoryScheduler

    return MemoryScheduler


def _write_no_journal() -> None:
    from xqute._engine.journal import Journal

    def do_nothing(*_: Any) -> None:
        return

    for name in ("sending", "accepted", "killing", "ended", "hooked", "commit"):
        setattr(Journal, name, do_nothing)
    Journal.digest = lambda *_: ""  # type: ignore[method-assign]


async def _measure(options: argparse.Namespace) -> dict[str, Any]:
    command = shlex.split(options.command)
    if options.no_journal:
        _write_no_journal()
    xq = Xqute(_scheduler(options.scheduler), forks=options.forks, workdir="jobs")
    sampler = LagSampler()
    with sampler if options.lag else nullcontext():
        cpu_s, started = _cpu_s(), time.perf_counter()
        for _ in range(options.jobs):
            await xq.feed(command)
        await xq.run_until_complete()
        seconds, cpu_s = time.perf_counter() - started, _cpu_s() - cpu_s
    succeeded = sum(job.outcome is JobOutcome.SUCCEEDED for job in xq.jobs)
    if succeeded != options.jobs:
        sys.exit(f"only {succeeded} of {options.jobs} jobs succeeded")
    return {
        "seconds": seconds,
        "cpu_s": cpu_s,
        "lags_ms": [round(lag_s * 1000, 3) for lag_s in sampler.lags_s],
        "lags_by_time_ms": [round(lag_s * 1000, 3) for lag_s in sampler.by_time_s()],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scheduler", default="local")
    parser.add_argument("--forks", type=int, required=True)
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--command", default="true")
    parser.add_argument("--lag", action="store_true")
    parser.add_argument("--no-journal", action="store_true")
    print(json.dumps(asyncio.run(_measure(parser.parse_args()))))
