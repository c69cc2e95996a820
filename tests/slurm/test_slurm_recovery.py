"""A driver dies over a real Slurm, and the next one takes its jobs up."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xqute import Xqute
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)


def start(code):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def runs_of(job):
    return (job.metadir / "runs").read_text().splitlines()


async def test_what_runs_on_is_watched_and_killed_by_the_next_driver(slurm, tmp_path):
    script = 'echo x >>"$XQUTE_JOB_METADIR/runs"; sleep 300'
    code = f"""
import asyncio, sys
from xqute import Xqute
from xqute.testing import bash

async def main():
    async with Xqute("slurm", workdir={str(tmp_path / "w")!r}, forks=8) as xq:
        for _ in range(3):
            await xq.feed(bash({script!r}))
        while not all(job.started_at for job in xq.jobs):
            await asyncio.sleep(0.05)
        print("run", flush=True)
        await asyncio.sleep(100)

asyncio.run(main())
"""
    driver = start(code)
    assert driver.stdout.readline() == "run\n"
    driver.kill()
    driver.communicate()
    async with Xqute("slurm", workdir=tmp_path / "w", forks=8) as xq:
        xq.scheduler.kill_grace_s = 1.0
        jobs = [await xq.feed(bash(script)) for _ in range(3)]
        await until(lambda: all(job.started_at for job in jobs), "they are taken up", 60)
        assert all(job.adopted for job in jobs)
        xq.cancel()
    assert [str(job.outcome) for job in jobs] == ["killed"] * 3
    assert [runs_of(job) for job in jobs] == [["x"]] * 3
    await until(lambda: slurm.names() == [], "nothing is left in the queue", 60)
