"""Run one job at a time and tell how long each took, from before its feed until its end is known.

Prints `kept_ms` (jobs fed to one Xqute that is kept feeding, the next after the last one's end) and
`fresh_ms` (an Xqute of its own for each, until `run_until_complete` returned).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time

from xqute import Job, JobOutcome, Xqute

IDLE_S = 0.002
"""Between two jobs, so that what the last one left to do is not measured with the next."""


def _check(job: Job) -> None:
    if job.outcome is not JobOutcome.SUCCEEDED:
        sys.exit(f"{job!r} ended as {job.outcome}: {job.reason}")


async def _kept(samples: int) -> list[float]:
    took_ms = []
    xq = Xqute(forks=2, workdir="kept")
    await xq.run_until_complete(keep_feeding=True)
    for _ in range(samples):
        started = time.perf_counter()
        await xq.feed(["true"])
        job = xq.jobs[-1]
        await job.wait()
        took_ms.append((time.perf_counter() - started) * 1000)
        _check(job)
        await asyncio.sleep(IDLE_S)
    await xq.stop_feeding()
    return took_ms


async def _fresh(samples: int, first: int = 0) -> list[float]:
    took_ms = []
    for index in range(first, first + samples):
        xq = Xqute(forks=2, workdir=f"fresh-{index}")
        started = time.perf_counter()
        await xq.feed(["true"])
        await xq.run_until_complete()
        took_ms.append((time.perf_counter() - started) * 1000)
        _check(xq.jobs[0])
        await asyncio.sleep(IDLE_S)
    return took_ms


async def _measure(samples: int) -> dict[str, list[float]]:
    await _fresh(1)  # what is loaded at the first job is not this job's cost
    return {"kept_ms": await _kept(samples), "fresh_ms": await _fresh(samples, first=1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, required=True)
    print(json.dumps(asyncio.run(_measure(parser.parse_args().samples))))
