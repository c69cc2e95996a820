"""Waiting for single jobs and for all: `completed`, `job.wait`, `async with`, `xqute.run`."""

from __future__ import annotations

import asyncio
import threading

import pytest

import xqute
from xqute import Job, JobOutcome, JobStatus, Xqute

pytestmark = pytest.mark.usefixtures("job_processes")


# --- completed ----------------------------------------------------------------------------------


@pytest.mark.concurrency
async def test_completed_gives_each_job_as_it_ends(tmp_path, gate):
    xq = Xqute(workdir=tmp_path, forks=2)
    slow = await xq.put(gate.command())
    quick = await xq.put("true")
    failing = await xq.put("false")
    seen = []
    async for job in xq.completed():
        seen.append(job)
        assert job.outcome is not None
        if len(seen) == 2:
            gate.open()
    assert seen == [quick, failing, slow]
    await xq.run_until_complete()


async def test_completed_ends_when_all_that_were_fed_have(tmp_path):
    xq = Xqute(workdir=tmp_path)
    assert [job async for job in xq.completed()] == []
    await xq.put("true")
    assert [job.index async for job in xq.completed()] == [0]
    await xq.put("true")
    await xq.run_until_complete()
    assert [job.index async for job in xq.completed()] == [0, 1]


async def test_completed_waits_for_more_while_feeding_is_kept_on(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.run_until_complete(keep_feeding=True)
    seen = []

    async def consume():
        seen.extend([job.index async for job in xq.completed()])

    consumer = asyncio.create_task(consume())
    await (await xq.put("true")).wait()
    await (await xq.put("true")).wait()
    assert not consumer.done()
    await xq.stop_feeding()
    await asyncio.wait_for(consumer, 5)
    assert seen == [0, 1]


async def test_each_consumer_of_completed_gets_all_jobs(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=2)
    for _ in range(6):
        await xq.put("true")

    async def consume():
        return {job.index async for job in xq.completed()}

    assert await asyncio.gather(consume(), consume()) == [set(range(6))] * 2
    await xq.run_until_complete()


async def test_completed_gives_a_job_once_however_often_it_was_tried(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=2)
    await xq.put("false")
    assert [(job.index, job.trial_count) async for job in xq.completed()] == [(0, 2)]
    await xq.run_until_complete()


async def test_completed_gives_cancelled_jobs_too(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.put("sleep 60")
    await xq.put("sleep 60")
    xq.cancel()
    outcomes = [job.outcome async for job in xq.completed()]
    await xq.run_until_complete()
    assert len(outcomes) == 2
    assert set(outcomes) <= {JobOutcome.CANCELLED, JobOutcome.KILLED}


async def test_more_may_be_fed_for_each_job_that_is_completed(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=2)
    await xq.put(["echo", "0"])
    async for job in xq.completed():
        n = int(job.stdout_file.read_text())
        if n < 4:
            await xq.put(["echo", n + 1])
    await xq.run_until_complete()
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["0\n", "1\n", "2\n", "3\n", "4\n"]


# --- job.wait -----------------------------------------------------------------------------------


@pytest.mark.concurrency
async def test_wait_returns_when_this_job_has_ended_hooks_included(tmp_path, gate, recorder):
    xq = Xqute(workdir=tmp_path, forks=2, plugins=[recorder])
    other = await xq.put(gate.command())
    job = await xq.put("false")
    await job.wait()
    assert (job.status, job.outcome, job.rc) == (JobStatus.FAILED, JobOutcome.FAILED, 1)
    assert recorder.hooks(job.index)[-1] == "failed"
    assert other.outcome is None
    gate.open()
    await xq.run_until_complete()


async def test_wait_waits_for_the_last_attempt(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=2)
    job = await xq.put("false")
    await job.wait()
    assert (job.trial_count, job.outcome) == (2, JobOutcome.FAILED)
    await xq.run_until_complete()


async def test_wait_for_an_ended_job_returns_at_once(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    await asyncio.wait_for(job.wait(), 1)


async def test_wait_for_a_job_that_was_never_fed_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="Job-5"):
        await Job(5, "true", tmp_path).wait()


async def test_to_stop_waiting_for_a_job_does_not_stop_the_job(tmp_path, gate):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(gate.command())
    waiters = [asyncio.create_task(job.wait()) for _ in range(2)]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(job.wait(), 0.05)
    waiters[0].cancel()
    gate.open()
    await waiters[1]
    assert job.outcome is JobOutcome.SUCCEEDED
    await xq.run_until_complete()


# --- async with ---------------------------------------------------------------------------------


async def test_async_with_waits_for_all_jobs(tmp_path):
    async with Xqute(workdir=tmp_path) as xq:
        assert isinstance(xq, Xqute)
        job = await xq.put("sleep 0.1")
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_async_with_ends_keep_feeding_too(tmp_path):
    async with Xqute(workdir=tmp_path) as xq:
        await xq.run_until_complete(keep_feeding=True)
        job = await xq.put("true")
    assert job.outcome is JobOutcome.SUCCEEDED
    assert not xq.is_feeding()


async def test_a_block_that_raises_stops_the_run_and_raises_on(tmp_path, job_processes, until):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012  # what the block raises
        async with Xqute(workdir=tmp_path) as xq:
            running = await xq.put("sleep 60")
            waiting = await xq.put("sleep 60")
            await until(job_processes)
            raise ZeroDivisionError
    assert running.outcome is JobOutcome.KILLED
    assert waiting.outcome is JobOutcome.CANCELLED
    assert job_processes() == []


async def test_a_block_that_is_cancelled_stops_the_run(tmp_path, job_processes, until):
    async def block():
        async with Xqute(workdir=tmp_path) as xq:
            await xq.put("sleep 60")
            await asyncio.sleep(60)

    task = asyncio.create_task(block())
    await until(job_processes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert job_processes() == []


# --- xqute.run ----------------------------------------------------------------------------------


def test_run_gives_the_jobs_in_order(tmp_path):
    commands = (command for command in ["echo a", ["echo", "b c"], ("bash", "-c", "exit 3")])
    jobs = xqute.run(commands, workdir=tmp_path, forks=3)
    assert [job.index for job in jobs] == [0, 1, 2]
    assert [job.rc for job in jobs] == [0, 0, 3]
    assert jobs[1].stdout_file.read_text() == "b c\n"


def test_run_has_the_keywords_of_xqute(tmp_path, recorder):
    jobs = xqute.run(
        ["false"],
        workdir=tmp_path,
        error_strategy="retry",
        num_retries=1,
        plugins=[recorder],
        scheduler_opts={"prescript": "echo pre"},
    )
    assert jobs[0].trial_count == 1
    assert jobs[0].stdout_file.read_text() == "pre\n"
    assert recorder.shutdowns == [None]


def test_run_takes_an_empty_list(tmp_path):
    assert xqute.run([], workdir=tmp_path) == []


async def test_run_inside_a_loop_names_the_await_form(tmp_path):
    with pytest.raises(RuntimeError, match="await"):
        xqute.run(["true"], workdir=tmp_path)


def test_run_works_in_a_thread(tmp_path):
    results = []
    thread = threading.Thread(
        target=lambda: results.extend(xqute.run(["echo 1", "false"], workdir=tmp_path))
    )
    thread.start()
    thread.join(30)
    assert [job.rc for job in results] == [0, 1]


def test_run_twice_in_one_process(tmp_path):
    for n in range(2):
        (job,) = xqute.run([["echo", n]], workdir=tmp_path)
        assert job.stdout_file.read_text() == f"{n}\n"


def test_an_iterable_that_raises_stops_the_run(tmp_path, job_processes):
    def commands():
        yield "sleep 60"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        xqute.run(commands(), workdir=tmp_path)
    assert job_processes() == []
