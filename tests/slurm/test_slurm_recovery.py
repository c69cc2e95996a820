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

#: Of those in `xqute._faults`, the ones that a job on a cluster passes.
EDGES = (
    *("before-intent", "before-sending", "after-answer", "after-journal"),
    *("before-hooks", "after-hooks", "after-hooked"),
)
RUNS = 'echo "$SLURM_JOB_ID" >>"$XQUTE_JOB_METADIR/runs"; sleep 0.$((RANDOM % 10)); exit 0'
DRIVER = f"""
import asyncio, sys
from xqute import Xqute, _faults
from xqute.testing import bash

workdir, edge, n_jobs = sys.argv[1:]

def die(reached):
    if reached == edge:
        print("reached", flush=True)
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)

_faults.on_reach = die

async def main():
    async with Xqute("slurm", workdir=workdir, forks=8, resume=True) as xq:
        xq.scheduler.linger_s = 0.2
        for _ in range(int(n_jobs)):
            await xq.feed(bash({RUNS!r}))
    assert {{job.rc for job in xq.jobs}} == {{0}}

asyncio.run(main())
"""


def start(code, *args):
    argv = [sys.executable, "-c", code, *args]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)


async def finish(workdir, n_jobs):
    """Run what is left, without an accident; every job has run once, and nothing is left."""
    async with Xqute("slurm", workdir=workdir, forks=8, resume=True) as xq:
        for _ in range(n_jobs):
            await xq.feed(bash(RUNS))
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded"] * n_jobs
    assert [len(runs_of(job)) for job in xq.jobs] == [1] * n_jobs


def runs_of(job):
    return (job.metadir / "runs").read_text().splitlines()


@pytest.mark.parametrize("edge", EDGES)
async def test_a_driver_that_dies_at_an_edge_loses_and_doubles_nothing(slurm, tmp_path, edge):
    for _ in range(5):
        driver = start(DRIVER, str(tmp_path / "w"), edge, "48")
        out, _ = driver.communicate(timeout=100)
        assert "reached" in out
        assert driver.returncode == -signal.SIGKILL
    await finish(tmp_path / "w", 48)
    await until(lambda: slurm.names() == [], "nothing is left in the queue", 60)


@pytest.mark.timeout(300)
async def test_a_driver_that_is_killed_at_random_loses_and_doubles_nothing(slurm, tmp_path, seed):
    rng = random.Random(seed)
    n_kills = 0
    while n_kills < 20:
        driver = start(DRIVER, str(tmp_path / "w"), "-", "250")
        try:
            driver.communicate(timeout=rng.uniform(0.3, 1.3))
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.communicate()
            n_kills += 1
        else:
            assert driver.returncode == 0
            break
    assert n_kills == 20, "there was enough to do"
    await finish(tmp_path / "w", 250)
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
