"""A workdir on a file system that shows what the nodes have written only after a while."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import pytest

from xqute import Xqute, plugin
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", "fusermount3", root=True)

MOUNT = Path(__file__).parents[1] / "services" / "lagging" / "mount.py"
LAG_S, POLL_S = 2.0, 1.0


@pytest.fixture
def lagging(tmp_path):
    """A run's options: its workdir as seen from here, and from the nodes."""
    spec = importlib.util.spec_from_file_location("lagging_mount", MOUNT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder, mountpoint = tmp_path / "folder", tmp_path / "mount"
    folder.mkdir()
    mountpoint.mkdir()
    with module.mounted(folder, mountpoint, LAG_S):
        yield {"workdir": mountpoint / "w", "mounted_workdir": str(folder / "w")}


class Ends:
    """A plugin that notes when jobs are told to have succeeded."""

    def __init__(self):
        self.told_s = {}

    @plugin.impl
    async def on_job_succeeded(self, scheduler, job):
        self.told_s[job.index] = time.time()


async def test_the_end_is_told_after_the_lag_and_one_poll(slurm, lagging):
    ends = Ends()
    opts = {"mounted_workdir": lagging["mounted_workdir"]}
    async with Xqute(
        "slurm", workdir=lagging["workdir"], forks=30, plugins=[ends], scheduler_opts=opts
    ) as xq:
        for number in range(30):
            end = f"{number % 4}.{number * 37 % 100:02}"  # at any time between two polls
            await xq.feed(bash(f"sleep {end}; printf %s $EPOCHREALTIME"))
    late_s = [ends.told_s[job.index] - float(job.stdout_file.read_text()) for job in xq.jobs]
    assert statistics.median(late_s) <= LAG_S + POLL_S
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
