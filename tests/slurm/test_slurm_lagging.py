"""A workdir on a file system that shows what the nodes have written only after a while."""

from __future__ import annotations

import statistics

import pytest
from lagging.runs import LAG_S, POLL_S, Ends, feed_timed, lagging_workdir

from xqute import Xqute
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", "fusermount3", root=True)


@pytest.fixture
def lagging(tmp_path):
    """A run's options: its workdir as seen from here, and from the nodes."""
    with lagging_workdir(tmp_path) as (workdir, mounted_workdir):
        yield {"workdir": workdir, "mounted_workdir": mounted_workdir}


async def test_the_end_is_told_after_the_lag_and_one_poll(slurm, lagging):
    ends = Ends()
    opts = {"mounted_workdir": lagging["mounted_workdir"]}
    async with Xqute(
        "slurm", workdir=lagging["workdir"], forks=30, plugins=[ends], scheduler_opts=opts
    ) as xq:
        await feed_timed(xq)
    assert statistics.median(ends.late_s(xq.jobs)) <= LAG_S + POLL_S
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded"] * 30


async def test_nothing_wrong_is_told_meanwhile(slurm, lagging):
    """The queue says that jobs are over long before what they have left is to be seen."""
    opts = {"mounted_workdir": lagging["mounted_workdir"], "recheck_interval": 0.5}
    ready = 'echo >"$XQUTE_JOB_METADIR/ready"; '
    xq = Xqute("slurm", workdir=lagging["workdir"], forks=50, scheduler_opts=opts)
    xq.scheduler.error_strategy, xq.scheduler.num_retries = "retry", 0
    xq.scheduler.lost_grace_s = 0.5
    async with xq:
        for number in range(12):
            await xq.feed(bash(f"echo x >>$XQUTE_JOB_METADIR/runs; sleep {number % 3}; exit 0"))
        fails = [await xq.feed(bash("exit 3")) for _ in range(4)]
        again = await xq.feed(bash("exit $((XQUTE_JOB_TRIAL == 0))"), num_retries=1)
        ended = await xq.feed(bash(f"{ready} kill -9 $$"))
        killed = await xq.feed(bash(f"{ready} sleep 300"))
        await until((killed.metadir / "ready").exists, "it runs", 60)
        await xq.scheduler.kill_job_and_update_status(killed)
    assert [(str(job.outcome), job.trial_count) for job in xq.jobs[:12]] == [("succeeded", 0)] * 12
    assert [(job.metadir / "runs").read_text() for job in xq.jobs[:12]] == ["x\n"] * 12
    assert [(job.rc, str(job.cause)) for job in fails] == [(3, "EXIT_CODE")] * 4
    assert (again.rc, again.trial_count) == (0, 1)
    assert (ended.rc, str(ended.cause)) == (137, "SIGNAL")
    assert str(killed.outcome) == "killed"
