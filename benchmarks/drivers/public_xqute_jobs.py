"""Feed many `true` commands to the public xqute 2.x, which this interpreter has, and wait for all.

Prints `seconds`: wall time from the first feed until `run_until_complete` returned.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from xqute import Xqute


def _rc(index: int) -> str:
    with open(os.path.join("jobs", str(index), "job.rc"), encoding="ascii") as file:
        return file.read().strip()


async def _measure(count: int, forks: int) -> dict[str, float]:
    xq = Xqute(forks=forks, workdir="jobs")
    started = time.perf_counter()
    for _ in range(count):
        await xq.feed(["true"])
    await xq.run_until_complete()
    seconds = time.perf_counter() - started
    succeeded = sum(_rc(index) == "0" for index in range(count))
    if succeeded != count:
        sys.exit(f"only {succeeded} of {count} jobs succeeded")
    return {"seconds": seconds}


print(json.dumps(asyncio.run(_measure(int(sys.argv[1]), int(sys.argv[2])))))
