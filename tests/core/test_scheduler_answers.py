"""What the methods of a three-method scheduler may answer, and what it may override."""

from __future__ import annotations

import asyncio

import pytest

from xqute import JobCause, JobOutcome, JobStatus, Xqute
from xqute.scheduler import BackendState, Phase

pytestmark = pytest.mark.usefixtures("job_processes")


# --- what their methods may say -----------------------------------------------------------------


@pytest.fixture
def talker(process_scheduler):
    class Talker(process_scheduler):
        """Its answers can be set by a test."""

        name = "talker"

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.first_recheck_s = 0.05
            self.lost_grace_s = 0.2

        async def job_is_running(self, job):
            return self.answer(job)

    return Talker


async def test_an_exception_of_job_is_running_means_unknown_and_the_job_is_watched_on(
    tmp_path, gate, until, talker
):
    asked = []

    def answer(job):
        asked.append(job)
        raise OSError("the controller is down")

    xq = Xqute(talker, workdir=tmp_path, scheduler_opts={"recheck_interval": 0.05})
    xq.scheduler.answer = answer
    job = await xq.put(gate.command("exit 3"))
    await until(lambda: len(asked) > 8)
    assert job.outcome is None
    gate.open()
    await xq.run_until_complete()
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)


async def test_a_job_that_is_gone_without_an_exit_code_is_lost(tmp_path, recorder, talker):
    class Vanishing(talker):
        async def submit_job(self, job):
            return 999999999

    xq = Xqute(
        Vanishing, workdir=tmp_path, plugins=[recorder], scheduler_opts={"recheck_interval": 0.05}
    )
    xq.scheduler.answer = lambda job: False
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert (job.outcome, job.rc, job.status) == (JobOutcome.LOST, -3, JobStatus.FAILED)
    assert job.reason
    assert recorder.hooks()[-1] == "failed"


async def test_a_lost_job_has_the_cause_that_the_backend_gives(tmp_path, talker):
    class Rebooted(talker):
        async def submit_job(self, job):
            return 999999999

        async def poll_jobs(self, jobs):
            state = BackendState(Phase.GONE, cause=JobCause.HOST_REBOOTED, reason="node1 is new")
            return dict.fromkeys(jobs, state)

    xq = Xqute(Rebooted, workdir=tmp_path, scheduler_opts={"recheck_interval": 0.05})
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert (job.outcome, job.cause) == (JobOutcome.LOST, JobCause.HOST_REBOOTED)
    assert "node1 is new" in job.reason


async def test_a_lost_job_is_not_tried_again_unless_asked_for(tmp_path, talker):
    class Vanishing(talker):
        async def submit_job(self, job):
            if job.trial_count:
                return await super().submit_job(job)
            return 999999999

    for wanted in (False, True):
        xq = Xqute(
            Vanishing,
            workdir=tmp_path / str(wanted),
            error_strategy="retry",
            retry_lost=wanted,
            scheduler_opts={"recheck_interval": 0.05},
        )
        xq.scheduler.answer = lambda job: False
        job = await xq.put("true")
        await asyncio.wait_for(xq.run_until_complete(), 15)
        assert job.outcome is (JobOutcome.SUCCEEDED if wanted else JobOutcome.LOST)


@pytest.mark.concurrency
async def test_gone_is_not_believed_while_the_job_tells_otherwise(tmp_path, gate, until, talker):
    asked = []

    def answer(job):
        asked.append(job)
        return False

    xq = Xqute(talker, workdir=tmp_path, scheduler_opts={"recheck_interval": 0.02}, forks=3)
    xq.scheduler.answer = answer
    xq.scheduler.lost_grace_s = 1000
    jobs = [await xq.put(gate.command("exit 4")) for _ in range(3)]
    await until(lambda: set(asked) == set(jobs))
    gate.open()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [(job.outcome, job.rc) for job in jobs] == [(JobOutcome.FAILED, 4)] * 3


async def test_a_job_that_the_backend_says_has_failed_before_running_has_failed(
    tmp_path, recorder, talker
):
    class Rejecting(talker):
        async def submit_job(self, job):
            return 999999999

        async def job_fails_before_running(self, job):
            return True

    xq = Xqute(
        Rejecting, workdir=tmp_path, plugins=[recorder], scheduler_opts={"recheck_interval": 0.05}
    )
    xq.scheduler.lost_grace_s = 1000
    xq.scheduler.answer = lambda job: False
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.status is JobStatus.FAILED
    assert job.outcome is not JobOutcome.LOST
    assert recorder.hooks()[-2:] == ["submitted", "failed"]


async def test_a_kill_that_raises_does_not_keep_others_from_being_killed(
    tmp_path, until, caplog, process_scheduler
):
    class Awkward(process_scheduler):
        name = "awkward"
        refuse = True

        async def kill_job(self, job):
            if job.index == 0 and Awkward.refuse:
                Awkward.refuse = False
                raise RuntimeError("the kill client crashed")
            await super().kill_job(job)

    xq = Xqute(Awkward, workdir=tmp_path, forks=3)
    xq.scheduler.kill_grace_s = 0.5
    for _ in range(3):
        await xq.put("sleep 60")
    await until(lambda: [job.status for job in xq.jobs] == [JobStatus.RUNNING] * 3)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert [job.outcome for job in xq.jobs] == [JobOutcome.KILLED] * 3
    assert "the kill client crashed" in caplog.text


async def test_a_submission_that_runs_the_job_to_its_end_is_heard(tmp_path, process_scheduler):
    class Blocking(process_scheduler):
        name = "blocking"

        async def submit_job(self, job):
            pid = await super().submit_job(job)
            await self.processes[pid].wait()
            return pid

    xq = Xqute(Blocking, workdir=tmp_path)
    job = await xq.put(["bash", "-c", "exit 3"])
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)


@pytest.mark.concurrency
async def test_a_stop_while_a_submission_is_under_way_kills_the_job(
    tmp_path, until, job_processes, process_scheduler
):
    began = []

    class Slow(process_scheduler):
        name = "slow"

        async def submit_job(self, job):
            began.append(job)
            await asyncio.sleep(0.1)
            return await super().submit_job(job)

    xq = Xqute(Slow, workdir=tmp_path)
    job = await xq.put("sleep 60")
    await until(lambda: began)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome in (JobOutcome.KILLED, JobOutcome.CANCELLED)
    await until(lambda: job_processes() == [])


async def test_a_second_stop_does_not_wait_for_a_submission_that_hangs(
    tmp_path, until, process_scheduler
):
    began = []

    class Hung(process_scheduler):
        name = "hung"

        async def submit_job(self, job):
            began.append(job)
            await asyncio.Event().wait()

    xq = Xqute(Hung, workdir=tmp_path)
    job = await xq.put("true")
    await until(lambda: began)
    xq.cancel()
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert job.outcome is JobOutcome.CANCELLED


async def test_submission_batch_bounds_the_submissions_at_once(tmp_path, process_scheduler):
    level, levels = [0], []

    class Counting(process_scheduler):
        name = "counting"

        async def submit_job(self, job):
            level[0] += 1
            levels.append(level[0])
            await asyncio.sleep(0.02)
            level[0] -= 1
            return await super().submit_job(job)

    xq = Xqute(Counting, workdir=tmp_path, forks=12, submission_batch=3)
    for _ in range(12):
        await xq.put("true")
    await xq.run_until_complete()
    assert max(levels) == 3
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


# --- what they may override ---------------------------------------------------------------------


async def test_the_engine_does_not_call_overridden_versions_of_the_single_job_methods(
    tmp_path, process_scheduler
):
    class Overriding(process_scheduler):
        name = "overriding"

        async def submit_job_and_update_status(self, job):
            raise AssertionError("not for the engine")

        kill_job_and_update_status = retry_job = submit_job_and_update_status

        async def polling_jobs(self, jobs, on, polling_counter=0):
            raise AssertionError("not for the engine")

    xq = Xqute(Overriding, workdir=tmp_path, error_strategy="retry", num_retries=1, forks=2)
    failing = await xq.put("false")
    killed = await xq.put("sleep 60")
    await failing.wait()
    xq.cancel()
    await xq.run_until_complete()
    assert (failing.trial_count, failing.outcome) == (1, JobOutcome.FAILED)
    assert killed.outcome is JobOutcome.KILLED


OLD_SCRIPT = """#!/bin/bash
echo 4 >{d}/job.status
{cmd} >{d}/job.stdout 2>{d}/job.stderr
rc=$?
echo $rc >{d}/job.rc
if [[ $rc == 0 ]]; then echo 6 >{d}/job.status; else echo 7 >{d}/job.status; fi
"""


@pytest.mark.parametrize(("command", "rc"), [("echo hi", 0), ("false", 1)])
async def test_a_scheduler_with_a_script_of_its_own_is_believed_by_its_status_files(
    tmp_path, command, rc, process_scheduler
):
    class OwnScript(process_scheduler):
        name = "own"

        def wrap_job_script(self, job):
            return OLD_SCRIPT.format(d=job.metadir.mounted, cmd=" ".join(job.cmd))

    xq = Xqute(OwnScript, workdir=tmp_path, scheduler_opts={"recheck_interval": 0.05})
    job = await xq.put(command)
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.rc == rc
    assert job.outcome is (JobOutcome.FAILED if rc else JobOutcome.SUCCEEDED)
