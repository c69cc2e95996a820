"""Promises about jobs that take longer than they may."""

from __future__ import annotations

import asyncio

from ...defaults import JobCause, JobOutcome, JobStatus
from .._needs import Needs, needs
from .._rig import Rig, bash, marker


class TimeoutPromises:
    """`timeout`: seconds after the start."""

    async def test_a_timeout_is_told(self, rig: Rig) -> None:
        """Status FAILED, outcome and cause TIMEOUT, and an exit code that is no success."""
        [job] = await rig.run(rig.command(0, runs_s=60), opts={"timeout": 0.2})
        assert (job.status, job.outcome) == (JobStatus.FAILED, JobOutcome.TIMEOUT)
        assert job.cause == JobCause.TIMEOUT
        assert job.rc > 0

    async def test_a_timeout_counts_from_the_start(self, rig: Rig) -> None:
        """The time that a job waits for its turn is not counted."""
        async with rig.running(opts={"timeout": 0.6}) as xq:
            jobs = [await xq.feed(rig.command(0, runs_s=0.4)) for _ in range(2)]
        assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 2

    async def test_a_job_may_have_its_own_timeout(self, rig: Rig) -> None:
        """It goes before the scheduler's; 0 is no limit."""
        async with rig.running(forks=2, opts={"timeout": 0.2}) as xq:
            none = await xq.feed(rig.command(0, runs_s=0.5), timeout=0)
            long = await xq.feed(rig.command(0, runs_s=0.4), timeout=30)
        assert [none.outcome, long.outcome] == [JobOutcome.SUCCEEDED] * 2

    @needs(Needs.COMMANDS)
    async def test_a_command_may_end_itself_at_its_timeout(self, rig: Rig) -> None:
        """It is sent TERM and has the grace period to clean up; its exit code is the true one."""
        script = "trap 'echo cleaned up; exit 7' TERM; echo ready; sleep 60 & wait"
        async with rig.running(opts={"timeout": 0.5}) as xq:
            xq.scheduler.kill_grace_s = 20.0
            job = await xq.feed(bash(script))
        assert rig.output(job) == b"ready\ncleaned up\n"
        assert (job.rc, job.outcome) == (7, JobOutcome.TIMEOUT)

    @needs(Needs.COMMANDS)
    async def test_a_command_that_ignores_term_is_killed_at_its_timeout(self, rig: Rig) -> None:
        """After the grace period it is sent KILL: rc 137, outcome TIMEOUT."""
        async with rig.running(opts={"timeout": 0.3}) as xq:
            job = await xq.feed(bash("trap '' TERM; echo ready; exec sleep 60"))
        assert (job.rc, job.outcome) == (137, JobOutcome.TIMEOUT)
        assert rig.output(job) == b"ready\n"

    @needs(Needs.COMMANDS, Needs.PROCESSES)
    async def test_a_timeout_leaves_nothing_behind(self, rig: Rig) -> None:
        """What the command has started ends with it."""
        word = marker()
        script = 'exec -a "$1-child" sleep 60 & echo ready; exec -a "$1" sleep 60'
        async with rig.running(opts={"timeout": 0.4}) as xq:
            job = await rig.feed_ready(xq, bash(script, word))
            assert rig.find_processes(word)
        assert job.outcome == JobOutcome.TIMEOUT
        await rig.until(lambda: not rig.find_processes(word), "its processes are gone")

    async def test_a_job_that_ends_in_time_is_not_touched(self, rig: Rig) -> None:
        """A timeout far away changes nothing, and is not waited for."""
        began_s = asyncio.get_running_loop().time()
        [job] = await rig.run(rig.command(3), opts={"timeout": 600})
        assert (job.rc, job.outcome) == (3, JobOutcome.FAILED)
        assert asyncio.get_running_loop().time() - began_s < rig.contract.deadline_s
