"""The Slurm scheduler keeps the contract, on a real Slurm."""

from __future__ import annotations

import os
import sys

import pytest

from xqute.testing import SchedulerContract, run_chaos
from xqute_slurm import SlurmScheduler

TRACKS_ORPHANS = os.access("/sys/fs/cgroup/freezer", os.W_OK)
pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)


class TestSlurm(SchedulerContract):
    many = 100
    does_not_apply = (
        {}
        if TRACKS_ORPHANS
        else {"test_a_kill_leaves_nothing_behind": "Slurm finds no orphans without cgroups"}
    )

    @pytest.fixture(autouse=True)
    def _on_the_cluster(self, slurm):
        """Each promise has the cluster for itself."""

    def make_scheduler(self, workdir, **keywords):
        return SlurmScheduler(workdir, **keywords)

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.linger_s = 0.1
        scheduler.kill_timeout_s = 20.0

    def break_submissions(self, scheduler):
        scheduler.config["partition"] = "no-such-partition"
        return "invalid partition specified: no-such-partition"


@pytest.mark.timeout(3600)
def test_drivers_that_are_killed_lose_and_double_nothing(slurm, tmp_path, seed, request, capsys):
    """A sample; `--kills=40` kills 20 at random and 5 at each edge."""
    kills = request.config.option.kills // 2
    report = run_chaos(TestSlurm(), tmp_path, kills=kills, hits=max(1, kills // 4), seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    report.check()
