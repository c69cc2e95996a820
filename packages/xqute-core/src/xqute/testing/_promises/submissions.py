"""Promises about how jobs get to the backend, and what a refusal leads to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ...defaults import RC_NOT_SUBMITTED, JobOutcome, JobStatus
from ...errors import SubmitError
from ...job import Job
from ...plugin import plugin
from ...scheduler import Scheduler, Submission
from .._needs import Needs, needs
from .._recorder import HookRecorder
from .._rig import Rig, bash, replace

Answers = Mapping[Job, int | str | Exception]


_IN_BACKEND = frozenset({JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.KILLING})


class _Census:
    """A plugin that looks, at each submission, how many of the jobs the backend has."""

    name = "census"

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.most = 0

    @plugin.impl
    async def on_job_submitted(self, scheduler: Scheduler, job: Job) -> None:
        n_inside = sum(job.status in _IN_BACKEND for job in self.jobs)
        self.most = max(self.most, n_inside)


class SubmissionPromises:
    """forks, submission_batch, order, refusals, and when a scheduler's settings are read."""

    async def test_forks_are_never_exceeded(self, rig: Rig) -> None:
        """Never are more jobs between their submission and their end than `forks`."""
        forks = 3
        census = _Census()
        async with rig.running(forks=forks, plugins=[census]) as xq:
            census.jobs = xq.jobs
            for _ in range(4 * forks):
                await xq.feed(rig.command(0, runs_s=0.05))
        assert 0 < census.most <= forks

    async def test_as_many_run_as_forks_allow(self, rig: Rig) -> None:
        """Jobs run side by side: with forks=4, four that wait for each other all run."""
        async with rig.running(forks=4) as xq:
            jobs = [await xq.feed(rig.command(0, runs_s=60)) for _ in range(4)]
            await rig.until(
                lambda: all(job.status is JobStatus.RUNNING for job in jobs), "four run at once"
            )
            xq.cancel()

    async def test_submission_batch_is_never_exceeded(self, rig: Rig) -> None:
        """Never are more submissions under way than `submission_batch`, and that many may be."""
        batch = 3
        n_under_way, most = 0, 0
        async with rig.running(forks=20, submission_batch=batch) as xq:
            submit = xq.scheduler.submit

            async def counted(submission: Submission) -> Answers:
                nonlocal n_under_way, most
                n_under_way += 1
                most = max(most, n_under_way)
                await asyncio.sleep(0.01)
                try:
                    return await submit(submission)
                finally:
                    n_under_way -= 1

            replace(xq.scheduler, "submit", counted)
            for _ in range(20):
                await xq.feed(rig.command(0))
        assert 0 < most <= batch
        assert all(job.outcome == JobOutcome.SUCCEEDED for job in xq.jobs)

    async def test_jobs_are_submitted_in_the_order_of_feeding(self, rig: Rig) -> None:
        """First fed, first submitted."""
        recorder = HookRecorder()
        await rig.run(*[rig.command(0)] * 8, plugins=[recorder])
        order = [call.index for call in recorder.calls if call.hook == "on_job_submitted"]
        assert order == list(range(8))

    async def test_a_failed_submission_is_told(self, rig: Rig) -> None:
        """FAILED, SUBMIT_FAILED, rc -2, and the backend's words in reason and stderr."""
        async with rig.running() as xq:
            words = rig.contract.break_submissions(xq.scheduler)
            job = await xq.feed(rig.command(0))
        assert (job.status, job.outcome) == (JobStatus.FAILED, JobOutcome.SUBMIT_FAILED)
        assert job.rc == RC_NOT_SUBMITTED
        assert words in job.reason
        assert words.encode() in rig.errors(job)

    async def test_an_unexpected_error_fails_one_submission_only(self, rig: Rig) -> None:
        """Whatever a backend raises is that job's failure: the run, and the next job, go on."""
        async with rig.running() as xq:
            submit = xq.scheduler.submit

            async def fails_once(_submission: Submission) -> Answers:
                replace(xq.scheduler, "submit", submit)
                raise ZeroDivisionError("a bug in the backend")

            replace(xq.scheduler, "submit", fails_once)
            first = await xq.feed(rig.command(0))
            await first.wait()
            second = await xq.feed(rig.command(0))
        assert (first.outcome, first.rc) == (JobOutcome.SUBMIT_FAILED, RC_NOT_SUBMITTED)
        assert "a bug in the backend" in first.reason
        assert second.outcome == JobOutcome.SUCCEEDED

    async def test_a_refusal_for_now_costs_no_retry(self, rig: Rig) -> None:
        """Where the backend says that it may accept it later, it is asked again, at no charge."""
        n_refusals = 0
        async with rig.running(num_retries=0) as xq:
            submit = xq.scheduler.submit

            async def refuses_once(_submission: Submission) -> Answers:
                nonlocal n_refusals
                n_refusals += 1
                replace(xq.scheduler, "submit", submit)
                raise SubmitError("quota", transient=True)

            replace(xq.scheduler, "submit", refuses_once)
            job = await xq.feed(rig.command(0))
        assert n_refusals == 1
        assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, 0)

    @needs(Needs.COMMANDS)
    async def test_a_lost_answer_runs_no_command_twice(self, rig: Rig) -> None:
        """A submission that was accepted although it seemed to fail: its command runs, once."""
        async with rig.running() as xq:
            submit = xq.scheduler.submit

            async def loses_the_answer(submission: Submission) -> Answers:
                replace(xq.scheduler, "submit", submit)
                await submit(submission)
                await rig.until(
                    lambda: (rig.read(submission.jobs[0], "runs") or b"") != b"",
                    "the command has started",
                )
                raise SubmitError("connection lost", transient=True, maybe_submitted=True)

            replace(xq.scheduler, "submit", loses_the_answer)
            job = await xq.feed(bash('echo run >>"$XQUTE_JOB_METADIR/runs"; sleep 0.5; exit 3'))
        assert rig.read(job, "runs") == b"run\n"
        assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)

    async def test_a_scheduler_can_be_made_anywhere(self, rig: Rig) -> None:
        """Without event loop, daemon, network or credentials: those are needed when it is used."""

        def make() -> Scheduler:
            # In a thread there is no event loop.
            return rig.scheduler(jobname_prefix="kit")

        scheduler = await asyncio.to_thread(make)
        assert scheduler.jobname_prefix == "kit"

    @needs(Needs.COMMANDS)
    async def test_the_workdir_may_be_assigned_later(self, rig: Rig) -> None:
        """Engines make the scheduler first, and know the folder later."""
        later = rig.elsewhere().workdir
        async with rig.running() as xq:
            xq.scheduler.workdir = later
            job = await xq.feed(bash('echo "$XQUTE_METADIR"'))
        assert job.metadir == xq.scheduler.workdir / "0"
        assert str(xq.scheduler.workdir) == str(later)
        assert rig.output(job).decode().strip() == str(xq.scheduler.workdir.mounted)

    @needs(Needs.COMMANDS)
    async def test_settings_are_read_at_submission(self, rig: Rig) -> None:
        """What is changed on the scheduler after it was made counts for the jobs that follow."""
        async with rig.running() as xq:
            first = await xq.feed(["pwd"])
            await first.wait()
            xq.scheduler.prescript = "echo changed"
            xq.scheduler.cwd = "/"
            second = await xq.feed(["pwd"])
            await second.wait()
            xq.scheduler.timeout = 0.2
            third = await xq.feed(rig.command(0, runs_s=60))
        assert b"changed" not in rig.output(first)
        assert rig.output(second) == b"changed\n/\n"
        assert third.outcome == JobOutcome.TIMEOUT
