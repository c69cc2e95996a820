"""Drivers that die over a real Slurm: nothing is lost, and nothing runs twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys

import pytest

from xqute import Xqute
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)

N_JOBS = 24
RUNS = 'echo "$SLURM_JOB_ID" >>"$XQUTE_JOB_METADIR/runs"; sleep 0.$((RANDOM % 10)); exit 0'
DRIVER = f"""
import asyncio, sys
from xqute import Xqute, _faults
from xqute.testing import bash

workdir, edge = sys.argv[1:]

def die(reached):
    if reached == edge:
        print("reached", flush=True)
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

_faults.on_reach = die

async def main():
    async with Xqute("slurm", workdir=workdir, forks=8, resume=True) as xq:
        xq.scheduler.linger_s = 0.2
        for _ in range({N_JOBS}):
            await xq.feed(bash({RUNS!r}))
        print("fed", flush=True)
    assert [job.rc for job in xq.jobs] == [0] * {N_JOBS}

asyncio.run(main())
"""


def start(code, *args):
    argv = [sys.executable, "-c", code, *args]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


def start_driver(workdir, edge="-"):
    return start(DRIVER, str(workdir), edge)


async def finish(workdir):
    async with Xqute("slurm", workdir=workdir, forks=8, resume=True) as xq:
        for _ in range(N_JOBS):
            await xq.feed(bash(RUNS))
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded"] * N_JOBS
    return xq.jobs


def runs_of(job):
    return (job.metadir / "runs").read_text().splitlines()


@pytest.mark.parametrize(
    "edge",
    ["before-intent", "before-sending", "after-answer", "after-journal", "before-hooks"],
)
async def test_a_driver_that_dies_at_an_edge_loses_and_doubles_nothing(slurm, tmp_path, edge):
    for _ in range(3):
        driver = start_driver(tmp_path / "w", edge)
        out, _ = driver.communicate(timeout=100)
        assert "reached" in out
        assert driver.returncode == -signal.SIGKILL
    jobs = await finish(tmp_path / "w")
    assert [len(runs_of(job)) for job in jobs] == [1] * N_JOBS
    await until(lambda: slurm.names() == [], "nothing is left in the queue", 60)


@pytest.mark.timeout(300)
async def test_a_driver_that_is_killed_at_random_loses_and_doubles_nothing(slurm, tmp_path, seed):
    rng = random.Random(seed)
    for _ in range(12):
        driver = start_driver(tmp_path / "w")
        try:
            driver.communicate(timeout=rng.uniform(0.3, 2.5))
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
        else:
            assert driver.returncode == 0
    jobs = await finish(tmp_path / "w")
    assert [len(runs_of(job)) for job in jobs] == [1] * N_JOBS
    await until(lambda: slurm.names() == [], "nothing is left in the queue", 60)


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
