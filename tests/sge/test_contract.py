"""The scheduler keeps the contract on a real Grid Engine, as an ordinary user."""

from __future__ import annotations

import sys

import pytest

from xqute.testing import SchedulerContract, run_chaos
from xqute_sge import SgeScheduler

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]


class TestSge(SchedulerContract):
    deadline_s = 110.0  # on a machine with other things to do, too

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.accounting_lag_s = 3.0
        scheduler.linger_s = 1.0

    def make_scheduler(self, workdir, **keywords):
        return SgeScheduler(workdir, **keywords)

    def break_submissions(self, scheduler):
        scheduler.config["q"] = "no-such-queue"
        return 'unknown queue "no-such-queue"'


@pytest.mark.timeout(3600)
def test_drivers_that_are_killed_lose_and_double_nothing(cell, tmp_path, seed, request, capsys):
    """A sample; `--kills=40` kills 20 at random and 5 at each edge."""
    kills = request.config.option.kills // 2
    report = run_chaos(TestSge(), tmp_path, kills=kills, hits=max(1, kills // 4), seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    report.check()
