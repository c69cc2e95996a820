"""Promises about jobs that are ended on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ...defaults import JobCause, JobOutcome, JobStatus
from ...errors import SchedulerError
from ...job import Job
from .._needs import Needs, needs
from .._rig import Rig, bash, marker, replace

#: What a command that has $1 for a name may leave behind.
KIN = (
    '(exec -a "$1-child" sleep 60) &\n',
    '(trap "" TERM; exec -a "$1-deaf" sleep 60) &\n',
    '((exec -a "$1-orphan" sleep 60) &)\n',
    'set -m; (exec -a "$1-group" sleep 60) & set +m\n',
)


class KillPromises:
    """Kills of one and many, cancellation, and what is left."""

    async def test_a_kill_is_told(self, rig: Rig) -> None:
        """Status FINISHED, outcome KILLED, cause REQUESTED, and an exit code that is not 0."""
        async with rig.running() as xq:
            job = await rig.feed_running(xq, rig.command(0, runs_s=60))
            await xq.scheduler.kill_job_and_update_status(job)
            assert job.has_ended, "it returns when the job has ended"
        assert (job.status, job.outcome) == (JobStatus.FINISHED, JobOutcome.KILLED)
        assert job.cause == JobCause.REQUESTED
        assert job.rc != 0

    @needs(Needs.COMMANDS)
    async def test_a_killed_command_may_clean_up(self, rig: Rig) -> None:
        """It is sent TERM and has the grace period; its exit code is the true one."""
        script = "trap 'echo cleaned up; exit 9' TERM; echo ready; sleep 60 & wait"
        async with rig.running() as xq:
            xq.scheduler.kill_grace_s = 20.0
            job = await rig.feed_ready(xq, bash(script))
            await xq.scheduler.kill_job_and_update_status(job)
        assert rig.output(job) == b"ready\ncleaned up\n"
        assert (job.rc, job.outcome) == (9, JobOutcome.KILLED)

    @needs(Needs.COMMANDS)
    async def test_a_command_that_ignores_term_is_killed(self, rig: Rig) -> None:
        """After the grace period it is sent KILL: rc 137, outcome KILLED."""
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, bash("trap '' TERM; echo ready; exec sleep 60"))
            await xq.scheduler.kill_job_and_update_status(job)
        assert (job.rc, job.outcome) == (137, JobOutcome.KILLED)

    @needs(Needs.COMMANDS, Needs.PROCESSES)
    async def test_a_kill_leaves_nothing_behind(self, rig: Rig) -> None:
        """No process of the command's session lives on.

        Not its children, nor those that ignore TERM, nor those in a process group of their own, nor
        those whose parent is gone.
        """
        word = marker()
        script = "".join([*KIN, 'echo ready; exec -a "$1" sleep 60'])
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, bash(script, word))
            await rig.until(lambda: len(rig.find_processes(word)) == len(KIN) + 1, "all run")
            await xq.scheduler.kill_job_and_update_status(job)
        assert job.outcome == JobOutcome.KILLED
        await rig.until(lambda: not rig.find_processes(word), "its processes are gone")

    async def test_a_kill_of_a_waiting_job_cancels_it(self, rig: Rig) -> None:
        """A job that has no turn yet never runs: outcome CANCELLED, and it was never submitted."""
        async with rig.running(forks=1) as xq:
            runs = await rig.feed_running(xq, rig.command(0, runs_s=60))
            waits = await xq.feed(rig.command(0))
            await xq.scheduler.kill_job_and_update_status(waits)
            assert (waits.outcome, waits.submitted_at) == (JobOutcome.CANCELLED, None)
            assert runs.status is JobStatus.RUNNING, "the others are not touched"
            xq.cancel()

    async def test_cancel_stops_everything(self, rig: Rig) -> None:
        """What runs is killed, what waits is cancelled, and the run is over."""
        async with rig.running(forks=3) as xq:
            jobs = [await xq.feed(rig.command(0, runs_s=60)) for _ in range(6)]
            running = jobs[:3]
            await rig.until(
                lambda: all(job.status is JobStatus.RUNNING for job in running), "three run"
            )
            xq.cancel()
        assert [job.outcome for job in running] == [JobOutcome.KILLED] * 3
        assert [job.outcome for job in jobs[3:]] == [JobOutcome.CANCELLED] * 3

    async def test_a_cancelled_caller_stops_everything(self, rig: Rig) -> None:
        """Who cancels the task that waits for the run gets CancelledError, and nothing runs on."""
        xq = rig.xqute()
        job = await rig.feed_running(xq, rig.command(0, runs_s=60))
        waiter = asyncio.ensure_future(xq.run_until_complete())
        await asyncio.sleep(0)
        waiter.cancel()
        done, _ = await asyncio.wait([waiter], timeout=rig.contract.deadline_s)
        assert done, "the run is over in time"
        assert waiter.cancelled()
        assert job.outcome == JobOutcome.KILLED

    async def test_many_are_killed_at_once(self, rig: Rig) -> None:
        """Twenty kills at a time: each job ends by it, and is told so."""
        async with rig.running(forks=20) as xq:
            jobs = [await xq.feed(rig.command(0, runs_s=60)) for _ in range(20)]
            await rig.until(lambda: all(job.status is JobStatus.RUNNING for job in jobs), "all run")
            await xq.scheduler.kill_running_jobs(jobs)
            assert [job.outcome for job in jobs] == [JobOutcome.KILLED] * 20

    async def test_a_kill_touches_no_other_job(self, rig: Rig) -> None:
        """The neighbours of a killed job end by themselves."""
        async with rig.running(forks=3) as xq:
            first, killed, last = [await xq.feed(rig.command(5, runs_s=0.6)) for _ in range(3)]
            await rig.until(lambda: killed.status is JobStatus.RUNNING, "it runs")
            await xq.scheduler.kill_job_and_update_status(killed)
        assert killed.outcome == JobOutcome.KILLED
        assert [(job.rc, job.outcome) for job in (first, last)] == [(5, JobOutcome.FAILED)] * 2

    async def test_a_kill_that_goes_wrong_is_tried_again(self, rig: Rig) -> None:
        """A backend that cannot be reached for a moment does not make a job immortal."""
        async with rig.running() as xq:
            job = await rig.feed_running(xq, rig.command(0, runs_s=60))
            kill_jobs = xq.scheduler.kill_jobs

            async def fails_once(_jobs: Sequence[Job], _force: bool = False) -> None:
                replace(xq.scheduler, "kill_jobs", kill_jobs)
                raise SchedulerError("the controller is away")

            replace(xq.scheduler, "kill_jobs", fails_once)
            await xq.scheduler.kill_job_and_update_status(job)
        assert job.outcome == JobOutcome.KILLED

    async def test_killing_what_has_ended_is_no_error(self, rig: Rig) -> None:
        """A kill may always come too late; and a job that was never submitted is dead already."""
        async with rig.backend() as backend:
            ended = await backend.submit(rig.command(0))
            await backend.until_gone(ended)
            never = backend.create(rig.command(0))
            await backend.scheduler.kill_job(ended)
            await backend.scheduler.kill_job(never)
            await backend.scheduler.kill_jobs([ended, never])
            await backend.scheduler.kill_jobs([ended, never], force=True)

    async def test_killing_many_is_killing_each(self, rig: Rig) -> None:
        """`kill_jobs` ends all that it is given, among them ended ones, and no other."""
        async with rig.backend() as backend:
            ended = await backend.submit(rig.command(0))
            doomed = [await backend.submit(rig.command(0, runs_s=60)) for _ in range(3)]
            spared = await backend.submit(rig.command(0, runs_s=60))
            await backend.until_running(*doomed, spared)
            await backend.until_gone(ended)
            await backend.scheduler.kill_jobs([ended, *doomed])
            await backend.scheduler.kill_jobs([ended, *doomed], force=True)
            await backend.until_gone(*doomed)
            assert await backend.scheduler.job_is_running(spared)
