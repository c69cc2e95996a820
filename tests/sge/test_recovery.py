"""A driver that dies, at the worst moments, loses no job and runs none twice."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest

from xqute import JobOutcome, JobStatus, Xqute
from xqute.testing import bash, until

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]

DRIVER = """
import asyncio, os, signal, sys
from xqute import Xqute, _faults

workdir, edge, script, n_jobs = sys.argv[1:]
def die(reached):
    if reached == edge:
        os.kill(os.getpid(), signal.SIGKILL)
_faults.on_reach = die

async def main():
    opts = {"array_size": 4}
    async with Xqute("sge", workdir=workdir, forks=20, resume=True, scheduler_opts=opts) as xq:
        xq.scheduler.linger_s = 0.2
        for index in range(int(n_jobs)):
            await xq.feed(["bash", "-c", script, "bash", index])
asyncio.run(main())
"""
ONCE = 'echo run >>"$XQUTE_JOB_METADIR/runs"; '
SCRIPT = f"{ONCE}sleep 0.3; exit 0"
EDGES = (
    "before-intent",
    "before-sending",
    "after-answer",
    "after-journal",
    "before-hooks",
    "after-hooks",
    "after-hooked",
)


WAITS = ONCE + 'until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.1; done'


async def run_and_die(workdir, edge, script, n_jobs):
    """Have another driver run such jobs, and be killed when it comes to that edge."""
    process = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", DRIVER, workdir, edge, script, str(n_jobs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        timeout=80,
        check=False,
    )
    assert process.returncode == -9, process.stderr.decode()


@asynccontextmanager
async def resuming(workdir, script, n_jobs):
    """Run the same commands over the same workdir."""
    async with asyncio.timeout(90):
        async with Xqute("sge", workdir=workdir, forks=20, resume=True) as xq:
            scheduler = xq.scheduler
            scheduler.recheck_interval = scheduler.first_recheck_s = 0.5
            scheduler.lost_grace_s = 3.0
            for index in range(n_jobs):
                await xq.feed([*bash(script), str(index)])
            yield xq


def runs_of(jobs):
    return [(job.metadir / "runs").read_text() for job in jobs]


@pytest.mark.parametrize("edge", EDGES)
async def test_a_driver_that_is_killed_is_followed_by_another_that_loses_nothing(
    tmp_path, cell, edge
):
    """Five jobs, of which four go as an array, and one alone."""
    await run_and_die(tmp_path / "run", edge, SCRIPT, 5)
    async with resuming(tmp_path / "run", SCRIPT, 5) as xq:
        pass
    assert [(job.outcome, job.rc) for job in xq.jobs] == [(JobOutcome.SUCCEEDED, 0)] * 5
    assert runs_of(xq.jobs) == ["run\n"] * 5
    await until(lambda: not cell.run("qstat"), "the queue is empty", 20)


async def test_tasks_of_an_array_are_taken_over_by_its_name_and_can_be_killed(tmp_path, cell):
    """The first driver never learnt the id."""
    await run_and_die(tmp_path / "run", "after-answer", WAITS, 4)
    async with resuming(tmp_path / "run", WAITS, 4) as xq:
        await until(lambda: all(job.status is JobStatus.RUNNING for job in xq.jobs), "all run", 40)
        array = xq.jobs[0].jid.partition(".")[0]
        assert [job.jid for job in xq.jobs] == [f"{array}.{task}" for task in range(1, 5)]
        await xq.scheduler.kill_job_and_update_status(xq.jobs[2])
        (tmp_path / "run" / "go").touch()
    ends = [job.outcome for job in xq.jobs]
    assert ends.pop(2) == JobOutcome.KILLED
    assert ends == [JobOutcome.SUCCEEDED] * 3
    assert runs_of(xq.jobs) == ["run\n"] * 4
