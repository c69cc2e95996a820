"""HALT, and killing a single job."""

from __future__ import annotations

import asyncio
import signal

import pytest

import xqute
from xqute import JobOutcome, JobStatus, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


# --- HALT ---------------------------------------------------------------------------------------


async def test_halt_stops_the_run_and_names_the_job(tmp_path, until, gate, job_processes):
    xq = Xqute(workdir=tmp_path, error_strategy="halt", forks=2)
    running = await xq.put("sleep 60")
    await until(lambda: running.status == JobStatus.RUNNING)
    failing = await xq.put(gate.command("exit 3"))
    waiting = await xq.put("true")
    assert xq.halted_by is None
    gate.open()
    await xq.run_until_complete()
    assert xq.halted_by is failing
    assert (failing.outcome, failing.rc) == (JobOutcome.FAILED, 3)
    assert (running.outcome, waiting.outcome) == (JobOutcome.KILLED, JobOutcome.CANCELLED)
    assert job_processes() == []


async def test_halt_never_signals_its_own_process(tmp_path, recorder):
    got = []
    before = {sig: signal.signal(sig, lambda number, _: got.append(number)) for sig in (2, 15, 10)}
    try:
        xq = Xqute(workdir=tmp_path, error_strategy="halt", plugins=[recorder])
        await xq.put("false")
        await xq.put("true")
        await xq.run_until_complete()
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
    assert got == []
    assert recorder.shutdowns == [None]


async def test_halt_does_not_stop_for_a_success(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="halt")
    await xq.put("true")
    await xq.put("true")
    await xq.run_until_complete()
    assert xq.halted_by is None
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


def test_run_returns_the_jobs_of_a_halted_run(tmp_path):
    jobs = xqute.run(["false", "true"], workdir=tmp_path, error_strategy="halt")
    assert [job.outcome for job in jobs] == [JobOutcome.FAILED, JobOutcome.CANCELLED]


async def test_what_is_fed_after_a_halt_is_cancelled(tmp_path, until):
    xq = Xqute(workdir=tmp_path, error_strategy="halt")
    await xq.put("false")
    await until(lambda: xq.halted_by is not None and xq.task.done())
    late = await xq.put(["touch", tmp_path / "ran"])
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert late.outcome is JobOutcome.CANCELLED
    assert not (tmp_path / "ran").exists()


# --- one job ------------------------------------------------------------------------------------


async def test_one_job_can_be_killed_and_the_others_go_on(tmp_path, until, gate, recorder):
    xq = Xqute(workdir=tmp_path, forks=2, plugins=[recorder])
    job = await xq.put("sleep 60")
    other = await xq.put(gate.command())
    waiting = await xq.put("true")
    await until(lambda: job.status == JobStatus.RUNNING)
    await xq.scheduler.kill_job_and_update_status(job)
    assert (job.status, job.outcome) == (JobStatus.FINISHED, JobOutcome.KILLED)
    await job.wait()
    assert recorder.hooks(job.index)[-2:] == ["killing", "killed"]
    gate.open()
    await xq.run_until_complete()
    assert (other.outcome, waiting.outcome) == (JobOutcome.SUCCEEDED, JobOutcome.SUCCEEDED)


async def test_a_killed_job_is_not_tried_again(tmp_path, until):
    xq = Xqute(workdir=tmp_path, error_strategy="retry")
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    await xq.scheduler.kill_job_and_update_status(job)
    await xq.run_until_complete()
    assert (job.trial_count, job.outcome) == (0, JobOutcome.KILLED)


async def test_a_kill_that_the_backend_does_not_confirm_is_said_so(tmp_path, until, caplog):
    class Deaf(LocalScheduler):
        name = "deaf"

        async def kill_jobs(self, jobs, force=False):
            if allowed:
                await super().kill_jobs(jobs, force)

    allowed = []
    xq = Xqute(Deaf, workdir=tmp_path)
    xq.scheduler.kill_grace_s, xq.scheduler.kill_timeout_s = 0.1, 0.2
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert "confirmed" in job.reason
    assert "Job-0" in caplog.text
    allowed.append(True)
    await xq.scheduler.kill_jobs([job], force=True)
