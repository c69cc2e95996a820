"""The scheduler keeps the contract on a real Grid Engine, as an ordinary user."""

from __future__ import annotations

import pytest

from xqute import JobOutcome
from xqute.testing import SchedulerContract, bash, overrides_contract
from xqute_sge import SgeScheduler

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]


class TestSge(SchedulerContract):
    def make_scheduler(self, workdir, **keywords):
        return SgeScheduler(workdir, **keywords)

    @overrides_contract
    async def test_on_change_rerun_ends_the_old_and_runs_the_new(self, rig):
        """The queue shows the old one for up to a second: its processes are asked for instead."""
        word = f"xqute-sge-{rig.workdir.parent.name}"
        first = rig.xqute()
        await rig.feed_ready(first, bash('echo ready; exec -a "$1" sleep 60', word))
        assert rig.find_processes(word)
        await first.detach()
        alive = []
        async with rig.running(on_change="rerun") as xq:
            submit = xq.scheduler.submit

            async def looks(submission):
                alive.append(rig.find_processes(word))
                return await submit(submission)

            xq.scheduler.submit = looks
            job = await xq.feed(rig.command(3))
        assert alive == [[]]
        assert (job.rc, job.outcome) == (3, JobOutcome.FAILED)
