"""Jobs that Slurm may start again, because the user has said so: the last start counts."""

from __future__ import annotations

import pytest

from xqute import Xqute
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)

#: Each start leaves a line; the first stays, and makes a success of being told to end.
STARTS = (
    'echo "start ${SLURM_RESTART_COUNT:-0}" | tee -a "$XQUTE_JOB_METADIR/runs"; '
    "[[ ${SLURM_RESTART_COUNT:-0} != 0 ]] || { trap 'exit 0' TERM; sleep 300 & wait; }; "
)


def requeue_run(workdir, **opts):
    opts = {"requeue": True, "recheck_interval": 1.0, **opts}
    return Xqute("slurm", workdir=workdir, forks=100, num_retries=0, scheduler_opts=opts)


def runs_of(job):
    file = job.metadir / "runs"
    return file.read_text().splitlines() if file.exists() else []


async def until_started(*jobs):
    for job in jobs:
        await until(lambda job=job: runs_of(job), f"{job!r} is started", 60)


async def test_the_end_of_the_last_start_is_the_jobs(slurm, tmp_path):
    async with requeue_run(tmp_path / "w") as xq:
        alone = await xq.feed(bash(f"{STARTS} exit 4"))
        await until_started(alone)
        tasks = [await xq.feed(bash(f"{STARTS} exit {rc}")) for rc in (5, 0)]
        once = await xq.feed(bash("exit 6"))
        await until_started(*tasks)
        for job in (alone, *tasks):
            slurm.ask("scontrol", "requeue", job.jid)
    assert [(job.rc, str(job.outcome)) for job in (alone, *tasks, once)] == [
        *((4, "failed"), (5, "failed"), (0, "succeeded"), (6, "failed")),
    ]
    assert {job.trial_count for job in xq.jobs} == {0}
    for job in (alone, *tasks):
        assert runs_of(job) == ["start 0", "start 1"]
        assert job.stdout_file.read_text() == "start 1\n"


async def test_what_is_killed_between_two_starts_does_not_start_again(slurm, tmp_path):
    async with requeue_run(tmp_path / "w") as xq:
        job = await xq.feed(bash(f"{STARTS} exit 4"))
        await until_started(job)
        slurm.ask("scontrol", "requeuehold", job.jid)
        await until(lambda: "PENDING" in slurm.ask("squeue", "-h", "-o", "%T"), "it waits", 60)
        await xq.scheduler.kill_job_and_update_status(job)
    assert str(job.outcome) == "killed"
    assert runs_of(job) == ["start 0"]


async def test_an_attempt_that_was_told_to_have_ended_does_not_start_again(slurm, tmp_path):
    async with requeue_run(tmp_path / "w") as xq:
        job = await xq.feed(bash(f"{STARTS.replace('!= 0', '== 0')} exit 4"))
    assert (job.rc, runs_of(job)) == (4, ["start 0"])
    slurm.ask("scontrol", "requeue", job.jid)
    await until(lambda: slurm.names() == [], "the second start is over", 60)
    assert runs_of(job) == ["start 0"]


async def test_a_later_driver_tells_the_end_of_the_last_start(slurm, tmp_path):
    first = requeue_run(tmp_path / "w")
    async with first:
        job = await first.feed(bash(f"{STARTS} exit 4"))
        await until_started(job)
        await first.detach()
    slurm.ask("scontrol", "requeue", job.jid)
    await until(lambda: len(runs_of(job)) == 2, "it is started again", 60)
    async with requeue_run(tmp_path / "w") as xq:
        job = await xq.feed(bash(f"{STARTS} exit 4"))
    assert (job.rc, str(job.outcome), runs_of(job)) == (4, "failed", ["start 0", "start 1"])
