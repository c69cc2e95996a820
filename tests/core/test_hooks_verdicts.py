"""Plugins that kill, stop or judge: `on_job_killing`, `on_shutdown`, statuses of terminal hooks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from xqute import JobOutcome, JobStatus, Xqute, plugin

pytestmark = pytest.mark.usefixtures("job_processes")


# --- on_job_killing -----------------------------------------------------------------------------


async def test_a_plugin_that_kills_by_itself_and_returns_false_ends_the_job(
    tmp_path, until, job_processes, make_plugin
):
    async def kill(scheduler, job):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(job.jid), signal.SIGTERM)
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_killing=kill)])
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.KILLED
    assert job_processes() == []


async def test_a_plugin_that_kills_by_itself_and_sets_a_terminal_status_is_believed(
    tmp_path, until, job_processes, make_plugin
):
    async def kill(scheduler, job):
        await scheduler.kill_job(job)
        job.status = JobStatus.FINISHED
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_killing=kill)])
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.status is JobStatus.FINISHED
    assert job_processes() == []


async def test_a_job_whose_killing_is_refused_is_watched_on(tmp_path, until, gate, make_plugin):
    asked = []

    async def refuse(scheduler, job):
        asked.append(job)
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_killing=refuse)])
    job = await xq.put(gate.command("exit 3"))
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await until(lambda: asked)
    assert job.outcome is None
    gate.open()
    await xq.run_until_complete()
    assert (job.rc, job.outcome, job.status) == (3, JobOutcome.FAILED, JobStatus.FAILED)


async def test_a_refused_kill_can_be_asked_for_again(tmp_path, until, make_plugin):
    asked = []

    async def not_yet(scheduler, job):
        asked.append(job)
        return False if len(asked) == 1 else None

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_killing=not_yet)])
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    first = asyncio.create_task(xq.scheduler.kill_job_and_update_status(job))
    await until(lambda: asked)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    await asyncio.wait_for(first, 10)
    assert job.outcome is JobOutcome.KILLED


@pytest.mark.parametrize("hook", ["on_job_submitted", "on_job_started", "on_job_polling"])
async def test_a_hook_may_have_its_own_job_killed(tmp_path, make_plugin, hook, job_processes):
    """As plugins do that watch over memory or time."""

    async def kill(scheduler, job):
        await scheduler.kill_job_and_update_status(job)

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(**{hook: kill})])
    job = await xq.put("sleep 60")
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.outcome is JobOutcome.KILLED
    assert job_processes() == []


async def test_a_hook_may_have_another_job_killed(tmp_path, make_plugin):
    async def kill_first(scheduler, job):
        await scheduler.kill_job_and_update_status(jobs[0])

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_succeeded=kill_first)], forks=2)
    jobs = [await xq.put("sleep 60")]
    jobs.append(await xq.put("true"))
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [job.outcome for job in jobs] == [JobOutcome.KILLED, JobOutcome.SUCCEEDED]


async def test_a_hook_may_feed_the_run_that_is_being_waited_for(tmp_path, make_plugin):
    async def feed_more(scheduler, job):
        if job.index < 3:
            await xq.put(["echo", job.index + 1])

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_succeeded=feed_more)])
    await xq.put(["echo", 0])
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["0\n", "1\n", "2\n", "3\n"]


# --- on_shutdown --------------------------------------------------------------------------------


async def test_false_from_on_shutdown_leaves_the_stopping_to_the_plugin(tmp_path, until, gate):
    class Stops:
        name = "stops"

        @plugin.impl
        def on_shutdown(self, xqute, sig):
            return False

    xq = Xqute(workdir=tmp_path, plugins=[Stops()])
    running, waiting = await xq.put(gate.command()), await xq.put("true")
    await until(lambda: running.status == JobStatus.RUNNING)
    xq.cancel()
    task = asyncio.create_task(xq.run_until_complete())
    await until(lambda: waiting.outcome is not None)
    assert running.outcome is None
    gate.open()
    await task
    assert (running.outcome, waiting.outcome) == (JobOutcome.SUCCEEDED, JobOutcome.CANCELLED)


# --- terminal hooks that judge ------------------------------------------------------------------


async def test_finished_to_failed_in_on_job_succeeded_makes_it_a_failure(
    tmp_path, recorder, make_plugin
):
    async def judge(scheduler, job):
        job.status = JobStatus.FAILED

    xq = Xqute(workdir=tmp_path, plugins=[recorder, make_plugin(on_job_succeeded=judge)])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.status, job.outcome) == (JobStatus.FAILED, JobOutcome.FAILED)
    assert job.prev_status is JobStatus.FINISHED
    assert recorder.hooks()[-2:] == ["succeeded", "failed"]
    assert recorder.calls[-1][2] is JobStatus.FAILED


async def test_such_a_failure_is_tried_again_under_retry(tmp_path, recorder, make_plugin):
    async def judge(scheduler, job):
        if job.trial_count < 2:
            job.status = JobStatus.FAILED

    xq = Xqute(
        workdir=tmp_path,
        plugins=[recorder, make_plugin(on_job_succeeded=judge)],
        error_strategy="retry",
        num_retries=3,
    )
    job = await xq.put(["bash", "-c", "echo $XQUTE_JOB_TRIAL"])
    await xq.run_until_complete()
    assert (job.status, job.outcome, job.trial_count) == (
        JobStatus.FINISHED,
        JobOutcome.SUCCEEDED,
        2,
    )
    failed = [(status, trial) for hook, _, status, trial in recorder.calls if hook == "failed"]
    assert failed == [(JobStatus.RETRYING, 0), (JobStatus.RETRYING, 1)]
    assert (job.retry_dir / "1" / "job.stdout").read_text() == "1\n"


async def test_such_a_failure_halts_the_run_under_halt(tmp_path, make_plugin):
    async def judge(scheduler, job):
        job.status = JobStatus.FAILED

    xq = Xqute(
        workdir=tmp_path, plugins=[make_plugin(on_job_succeeded=judge)], error_strategy="halt"
    )
    job, waiting = await xq.put("true"), await xq.put("true")
    await xq.run_until_complete()
    assert xq.halted_by is job
    assert waiting.outcome is JobOutcome.CANCELLED


async def test_a_failure_may_be_forgiven_in_on_job_failed(tmp_path, make_plugin):
    async def forgive(scheduler, job):
        job.status = JobStatus.FINISHED

    for strategy in ("ignore", "retry", "halt"):
        xq = Xqute(
            workdir=tmp_path / strategy,
            plugins=[make_plugin(on_job_failed=forgive)],
            error_strategy=strategy,
        )
        jobs = [await xq.put("false"), await xq.put("true")]
        await xq.run_until_complete()
        assert [job.status for job in jobs] == [JobStatus.FINISHED] * 2
        assert (jobs[0].trial_count, xq.halted_by) == (0, None)


async def test_a_retry_may_be_called_off_in_on_job_failed(tmp_path, make_plugin):
    async def enough(scheduler, job):
        job.status = JobStatus.FAILED

    xq = Xqute(
        workdir=tmp_path, plugins=[make_plugin(on_job_failed=enough)], error_strategy="retry"
    )
    job = await xq.put("false")
    await xq.run_until_complete()
    assert (job.trial_count, job.status, job.outcome) == (0, JobStatus.FAILED, JobOutcome.FAILED)
