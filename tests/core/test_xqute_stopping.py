"""Stopping a run: `cancel`, `task.cancel`, a cancelled caller, HALT; and killing a single job."""

from __future__ import annotations

import asyncio
import signal

import pytest

from xqute import JobOutcome, JobStatus, SubmitError, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")

STUBBORN = ["bash", "-c", 'trap "" TERM; echo ready; while :; do sleep 0.05; done']


async def _run_one_of_three(tmp_path, until, **keywords):
    xq = Xqute(workdir=tmp_path, **keywords)
    for _ in range(3):
        await xq.put("sleep 60")
    await until(lambda: xq.jobs[0].status == JobStatus.RUNNING)
    return xq


def _assert_stopped(xq, job_processes):
    assert [job.outcome for job in xq.jobs] == [
        JobOutcome.KILLED,
        JobOutcome.CANCELLED,
        JobOutcome.CANCELLED,
    ]
    assert [job.status for job in xq.jobs] == [JobStatus.FINISHED] * 3
    assert xq.jobs[0].rc != 0
    assert job_processes() == []


@pytest.mark.concurrency
async def test_cancel_kills_what_runs_and_cancels_what_waits(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    xq.cancel()
    await xq.run_until_complete()
    _assert_stopped(xq, job_processes)


async def test_a_killed_job_tells_its_true_exit_code(tmp_path, until):
    xq = Xqute(workdir=tmp_path, forks=2)
    plain = await xq.put("sleep 60")
    polite = await xq.put(
        ["bash", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.02; done"]
    )
    await until(lambda: polite.stdout_file.exists() and polite.stdout_file.read_text())
    await until(lambda: plain.status == JobStatus.RUNNING)
    xq.cancel()
    await xq.run_until_complete()
    assert (plain.rc, plain.outcome) == (128 + signal.SIGTERM, JobOutcome.KILLED)
    assert (polite.rc, polite.outcome) == (5, JobOutcome.KILLED)
    assert plain.rc_file.read_text() == "143"


async def test_a_job_that_succeeds_in_spite_of_the_kill_has_succeeded(tmp_path, until):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(["bash", "-c", "trap : TERM; echo ready; sleep 0.2 & wait; wait; exit 0"])
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    xq.cancel()
    await xq.run_until_complete()
    assert (job.rc, job.status, job.outcome) == (0, JobStatus.FINISHED, JobOutcome.SUCCEEDED)


async def test_on_shutdown_is_told_the_signal_of_cancel(tmp_path, until, recorder):
    xq = await _run_one_of_three(tmp_path, until, plugins=[recorder])
    xq.cancel(signal.SIGUSR1)
    await xq.run_until_complete()
    assert recorder.shutdowns == [signal.SIGUSR1]


async def test_cancel_before_anything_was_fed_is_no_error(tmp_path):
    xq = Xqute(workdir=tmp_path)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)


async def test_cancel_after_the_end_is_no_error(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_a_job_fed_while_the_run_stops_is_cancelled(tmp_path, until):
    xq = await _run_one_of_three(tmp_path, until)
    xq.cancel()
    late = await xq.put("echo late")
    await xq.run_until_complete()
    assert late.outcome is JobOutcome.CANCELLED
    assert not late.stdout_file.exists()


async def test_a_job_fed_after_the_stop_and_before_the_wait_is_cancelled_too(tmp_path, until):
    """A program in its feeding loop does not notice a stop; nothing may begin anew behind it."""
    xq = await _run_one_of_three(tmp_path, until)
    xq.cancel()
    await until(lambda: all(job.outcome for job in xq.jobs) and xq.task.done())
    late = [await xq.put(["touch", tmp_path / "ran"]) for _ in range(3)]
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [job.outcome for job in late] == [JobOutcome.CANCELLED] * 3
    assert not (tmp_path / "ran").exists()


async def test_cancel_ends_keep_feeding(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    await xq.run_until_complete(keep_feeding=True)
    xq.cancel()
    await xq.run_until_complete()
    assert not xq.is_feeding()
    _assert_stopped(xq, job_processes)


async def test_stop_feeding_after_cancel_returns(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    await xq.run_until_complete(keep_feeding=True)
    xq.cancel()
    await asyncio.wait_for(xq.stop_feeding(), 10)
    _assert_stopped(xq, job_processes)


async def test_cancel_before_anything_was_fed_ends_completed(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.run_until_complete(keep_feeding=True)
    consumer = asyncio.create_task(anext(xq.completed(), None))
    await asyncio.sleep(0)  # it waits
    xq.cancel()
    assert await asyncio.wait_for(consumer, 5) is None


async def test_stop_feeding_after_the_end_of_a_stopped_run_is_no_error(tmp_path, until, caplog):
    xq = Xqute(workdir=tmp_path, error_strategy="halt")
    await xq.run_until_complete(keep_feeding=True)
    job = await xq.put("false")
    await until(xq.task.done)
    await asyncio.wait_for(xq.stop_feeding(), 5)
    assert xq.halted_by is job
    assert "stop_feeding" not in caplog.text


async def test_a_run_that_was_stopped_waits_for_no_more(tmp_path, until):
    xq = Xqute(workdir=tmp_path, error_strategy="halt")
    job = await xq.put("false")
    await until(xq.task.done)
    await xq.run_until_complete(keep_feeding=True)
    assert not xq.is_feeding()
    async with asyncio.timeout(5):
        assert [ended async for ended in xq.completed()] == [job]


async def test_cancelling_the_task_of_the_run_stops_it(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    assert isinstance(xq.task, asyncio.Task)
    xq.task.cancel()
    await xq.run_until_complete()
    _assert_stopped(xq, job_processes)


@pytest.mark.concurrency
async def test_cancel_comes_before_a_retry_that_waits(tmp_path, until):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1000)
    job = await xq.put("false")
    await until(lambda: job.trial_count > 2)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.status in (JobStatus.FAILED, JobStatus.FINISHED)
    assert job.outcome is not None


async def test_a_hook_may_cancel_the_run(tmp_path, make_plugin):
    async def enough(scheduler, job):
        xq.cancel()

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_failed=enough)])
    jobs = [await xq.put(command) for command in ("true", "false", "true", "true")]
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [job.outcome for job in jobs] == [
        JobOutcome.SUCCEEDED,
        JobOutcome.FAILED,
        JobOutcome.CANCELLED,
        JobOutcome.CANCELLED,
    ]


# --- a stubborn job -----------------------------------------------------------------------------


async def test_a_job_that_ignores_term_gets_kill_after_the_grace_period(tmp_path, until):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 0.2
    job = await xq.put(STUBBORN)
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert (job.rc, job.outcome) == (128 + signal.SIGKILL, JobOutcome.KILLED)


async def test_a_second_cancel_does_not_wait_for_the_grace_period(tmp_path, until):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 100
    job = await xq.put(STUBBORN)
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    xq.cancel()
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert (job.rc, job.outcome) == (128 + signal.SIGKILL, JobOutcome.KILLED)


# --- a cancelled caller -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["run_until_complete", "stop_feeding"])
async def test_a_timeout_around_the_wait_kills_everything_and_raises(
    tmp_path, until, job_processes, verb
):
    xq = await _run_one_of_three(tmp_path, until)
    if verb == "stop_feeding":
        await xq.run_until_complete(keep_feeding=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(getattr(xq, verb)(), 0.05)
    _assert_stopped(xq, job_processes)


async def test_asyncio_timeout_around_the_wait_does_so_too(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await xq.run_until_complete()
    _assert_stopped(xq, job_processes)


async def test_a_failing_task_group_stops_the_run_and_tells_of_the_failure(
    tmp_path, until, job_processes
):
    xq = await _run_one_of_three(tmp_path, until)

    async def fail():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as caught:  # noqa: PT012  # what the group raises
        async with asyncio.TaskGroup() as group:
            group.create_task(xq.run_until_complete())
            group.create_task(fail())
    assert [type(exc) for exc in caught.value.exceptions] == [ZeroDivisionError]
    _assert_stopped(xq, job_processes)


async def test_cancelled_error_propagates_after_the_clean_up(tmp_path, until, job_processes):
    xq = await _run_one_of_three(tmp_path, until)
    task = asyncio.create_task(xq.run_until_complete())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    _assert_stopped(xq, job_processes)


@pytest.mark.concurrency
async def test_a_caller_that_is_cancelled_twice_has_its_jobs_killed_at_once(
    tmp_path, until, job_processes
):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 100
    job = await xq.put(STUBBORN)
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    task = asyncio.create_task(xq.run_until_complete())
    await asyncio.sleep(0)
    task.cancel()
    await until(lambda: job.status == JobStatus.KILLING)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert job_processes() == []


async def test_a_stop_does_not_wait_until_a_backend_that_refuses_is_to_be_asked_again(
    tmp_path, make_plugin, monkeypatch
):
    """One is refused while another is still before its submission, and passes then."""
    refused, go_on, passed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def wait(scheduler, job):
        if job.index == 1:
            await go_on.wait()
            passed.set()

    class Busy(LocalScheduler):
        name = "busy"

        async def submit_job(self, job):
            refused.set()
            raise SubmitError("try later", transient=True)

    monkeypatch.setattr("xqute._engine.submitting.backoff_s", lambda n_before: 300.0)
    plugins = [make_plugin(on_job_submitting=wait)]
    xq = Xqute(Busy, workdir=tmp_path, forks=2, plugins=plugins)
    jobs = [await xq.put("true") for _ in range(3)]
    await refused.wait()
    for _ in range(20):
        await asyncio.sleep(0)  # the refusal is noted, and the next look is planned
    go_on.set()
    await passed.wait()
    for _ in range(20):
        await asyncio.sleep(0)
    xq.cancel()
    ended = asyncio.gather(*(job.wait() for job in jobs))
    try:
        await asyncio.wait_for(ended, 10)
    finally:
        await xq.detach()  # if it is not so, the test is not to wait either
    assert [job.outcome for job in jobs] == [JobOutcome.CANCELLED] * 3
