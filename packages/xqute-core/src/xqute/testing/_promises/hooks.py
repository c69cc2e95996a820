"""Promises about the hooks of plugins: which are called, when, how often, and what they may do."""

from __future__ import annotations

import signal

from ...defaults import JobCause, JobOutcome, JobStatus
from ...job import Job
from ...plugin import plugin
from ...scheduler import Scheduler
from ...xqute import Xqute
from .._recorder import HookRecorder
from .._rig import Rig

_ATTEMPT = ["queued", "submitting", "submitted", "started"]


class _Objects:
    """Objects to submissions or kills, after doing something itself."""

    priority = 10

    def __init__(self, hook: str, *, submits: bool = False) -> None:
        self.name = f"objects-{hook}"
        self._hook = hook
        self._submits = submits

    @plugin.impl
    async def on_job_submitting(self, scheduler: Scheduler, job: Job) -> bool | None:
        if self._hook != "on_job_submitting":
            return None
        if self._submits:
            job.clean()
            job.jid = await scheduler.submit_job(job)
            job.status = JobStatus.SUBMITTED
        return False

    @plugin.impl
    async def on_job_killing(self, scheduler: Scheduler, job: Job) -> bool | None:
        return False if self._hook == "on_job_killing" else None


class _Sets:
    """Sets a status in a hook."""

    def __init__(self, hook: str, status: JobStatus) -> None:
        self.name = "sets"
        self._hook, self._status = hook, status

    @plugin.impl
    async def on_job_started(self, scheduler: Scheduler, job: Job) -> None:
        if self._hook == "on_job_started":
            job.status = self._status

    @plugin.impl
    async def on_job_succeeded(self, scheduler: Scheduler, job: Job) -> None:
        if self._hook == "on_job_succeeded":
            job.status = self._status


class _Raises:
    """Raises in every hook, before anybody else is called."""

    name = "raises"
    priority = -100

    @plugin.impl
    async def on_job_init(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_queued(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_submitting(self, scheduler: Scheduler, job: Job) -> bool | None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_submitted(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_started(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_failed(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError

    @plugin.impl
    async def on_job_succeeded(self, scheduler: Scheduler, job: Job) -> None:
        raise ZeroDivisionError


class _Counts:
    """Counts the hooks of the run itself."""

    name = "counts"

    def __init__(self) -> None:
        self.inits: list[Xqute] = []
        self.shutdowns: list[signal.Signals | None] = []

    @plugin.impl
    def on_init(self, xqute: Xqute) -> None:
        self.inits.append(xqute)

    @plugin.impl
    def on_shutdown(self, xqute: Xqute, sig: signal.Signals | None) -> None:
        self.shutdowns.append(sig)


class HookPromises:
    """Order, counts, objections, verdicts and mishaps."""

    async def test_hooks_of_a_success_are_called_in_order(self, rig: Rig) -> None:
        """init, queued, submitting, submitted, started, succeeded: each once."""
        recorder = HookRecorder()
        [job] = await rig.run(rig.command(0), plugins=[recorder])
        assert recorder.of(job) == ["init", *_ATTEMPT, "succeeded"]

    async def test_hooks_are_called_again_at_a_retry(self, rig: Rig) -> None:
        """Each once per attempt, init once.

        While another attempt follows, the status is RETRYING, and `trial_count` names the one that
        failed.
        """
        recorder = HookRecorder()
        [job] = await rig.run(
            rig.command(1, 2), plugins=[recorder], error_strategy="retry", num_retries=1
        )
        assert recorder.of(job) == ["init", *_ATTEMPT, "failed", *_ATTEMPT, "failed"]
        failed = [call for call in recorder.calls if call.hook == "on_job_failed"]
        assert [(call.trial, call.status) for call in failed] == [
            (0, JobStatus.RETRYING),
            (1, JobStatus.FAILED),
        ]

    async def test_hooks_of_a_kill_are_called_in_order(self, rig: Rig) -> None:
        """killing, then killed; nobody is told that it failed or succeeded."""
        recorder = HookRecorder()
        async with rig.running(plugins=[recorder]) as xq:
            job = await rig.feed_running(xq, rig.command(0, runs_s=60))
            await xq.scheduler.kill_job_and_update_status(job)
        assert recorder.of(job) == ["init", *_ATTEMPT, "killing", "killed"]

    async def test_a_failed_submission_calls_only_the_failed_hook(self, rig: Rig) -> None:
        """Nothing was submitted, nothing started."""
        recorder = HookRecorder()
        async with rig.running(plugins=[recorder]) as xq:
            rig.contract.break_submissions(xq.scheduler)
            job = await xq.feed(rig.command(0))
        assert recorder.of(job) == ["init", "queued", "submitting", "failed"]

    async def test_hooks_of_many_jobs_are_called_once_each(self, rig: Rig) -> None:
        """Also in a crowd: one start and one end per job, the start first."""
        recorder = HookRecorder()
        jobs = await rig.run(*[rig.command(0)] * 40, forks=40, plugins=[recorder])
        for job in jobs:
            assert recorder.of(job) == ["init", *_ATTEMPT, "succeeded"]

    async def test_a_plugin_may_object_to_a_submission(self, rig: Rig) -> None:
        """False from `on_job_submitting`: the job is cancelled, and not waited for."""
        recorder = HookRecorder()
        objects = _Objects("on_job_submitting")
        [job] = await rig.run(rig.command(0), plugins=[objects, recorder])
        assert (job.outcome, job.submitted_at) == (JobOutcome.CANCELLED, None)
        assert recorder.of(job) == ["init", "queued", "submitting"]

    async def test_a_plugin_may_submit_by_itself(self, rig: Rig) -> None:
        """False, with SUBMITTED and an id set: what it has submitted is watched to its end."""
        objects = _Objects("on_job_submitting", submits=True)
        jobs = await rig.run(rig.command(0), rig.command(7), plugins=[objects])
        assert [job.rc for job in jobs] == [0, 7]
        assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED, JobOutcome.FAILED]

    async def test_a_plugin_may_object_to_a_kill(self, rig: Rig) -> None:
        """False from `on_job_killing`: the job runs on, to its own end."""
        objects = _Objects("on_job_killing")
        async with rig.running(plugins=[objects]) as xq:
            job = await rig.feed_running(xq, rig.command(0, runs_s=0.5))
            await xq.scheduler.kill_job_and_update_status(job)
        assert (job.outcome, job.rc) == (JobOutcome.SUCCEEDED, 0)

    async def test_a_plugin_may_judge_a_success_a_failure(self, rig: Rig) -> None:
        """FAILED, set in `on_job_succeeded`, counts: `on_job_failed` follows, the rc stays."""
        recorder = HookRecorder()
        sets = _Sets("on_job_succeeded", JobStatus.FAILED)
        [job] = await rig.run(rig.command(0), plugins=[sets, recorder])
        assert (job.status, job.outcome, job.rc) == (JobStatus.FAILED, JobOutcome.FAILED, 0)
        assert job.cause == JobCause.PLUGIN
        assert recorder.of(job) == ["init", *_ATTEMPT, "succeeded", "failed"]

    async def test_a_status_set_by_a_plugin_ends_the_watching(self, rig: Rig) -> None:
        """A terminal status sticks, whatever the backend says afterwards."""
        sets = _Sets("on_job_started", JobStatus.FAILED)
        [job] = await rig.run(rig.command(0, runs_s=0.2), plugins=[sets])
        assert (job.status, job.outcome) == (JobStatus.FAILED, JobOutcome.FAILED)
        assert job.cause == JobCause.PLUGIN

    async def test_a_plugin_that_raises_harms_nobody(self, rig: Rig) -> None:
        """Neither the jobs nor the plugins that come after it."""
        recorder = HookRecorder()
        jobs = await rig.run(rig.command(0), rig.command(3), plugins=[_Raises(), recorder])
        assert [job.rc for job in jobs] == [0, 3]
        assert recorder.of(jobs[0]) == ["init", *_ATTEMPT, "succeeded"]
        assert recorder.of(jobs[1]) == ["init", *_ATTEMPT, "failed"]

    async def test_a_run_is_begun_and_shut_down_once(self, rig: Rig) -> None:
        """`on_init` when it is made, `on_shutdown` at its end, without a signal."""
        counts = _Counts()
        async with rig.running(plugins=[counts]) as xq:
            await xq.feed(rig.command(0))
            assert counts.shutdowns == []
        assert counts.inits == [xq]
        assert counts.shutdowns == [None]
