"""What a scheduler does for a program that has no `Xqute`: one job at a time, polled."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

import pytest

from xqute import JobStatus, plugin
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


@pytest.fixture
def registered(recorder):
    """The recorder, registered as any installed plugin is."""
    plugin.register(recorder)
    yield recorder
    plugin.hooks._registry.pop(recorder.name)


async def _all_done(scheduler, jobs, deadline_s=15):
    async with asyncio.timeout(deadline_s):
        while not await scheduler.polling_jobs(jobs, "all_done"):  # noqa: ASYNC110  # as programs do
            await asyncio.sleep(0.01)


# --- submitting ---------------------------------------------------------------------------------


async def test_submit_job_gives_a_native_id_that_is_int_or_str(tmp_path):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    job.jid = await scheduler.submit_job(job)
    assert isinstance(job.jid, int | str)
    job.status = JobStatus.SUBMITTED
    await _all_done(scheduler, [job])
    assert (job.rc, job.status) == (0, JobStatus.FINISHED)


async def test_a_submission_sets_status_and_jid_and_calls_the_hooks(tmp_path, registered):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", "exit 3"])
    await scheduler.submit_job_and_update_status(job)
    assert registered.calls[-1][2] >= JobStatus.SUBMITTED
    assert job.jid_file.read_text().strip() == str(job.jid)
    await _all_done(scheduler, [job])
    assert registered.hooks() == ["submitting", "submitted", "started", "failed"]
    assert (job.rc, job.status) == (3, JobStatus.FAILED)


async def test_a_job_that_is_submitted_or_running_is_left_alone(tmp_path, gate):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, gate.command())
    await scheduler.submit_job_and_update_status(job)
    jid = job.jid
    assert await scheduler.job_is_submitted_or_running(job)
    await scheduler.submit_job_and_update_status(job)
    assert job.jid == jid
    gate.open()
    await _all_done(scheduler, [job])


async def test_a_job_that_another_program_has_running_is_left_alone(tmp_path, gate, registered):
    first, second = LocalScheduler(tmp_path), LocalScheduler(tmp_path)
    job = first.create_job(0, gate.command())
    await first.submit_job_and_update_status(job)
    same = second.create_job(0, gate.command())
    assert same.jid is not None
    assert str(same.jid) == str(job.jid)
    assert await second.job_is_submitted_or_running(same)
    await second.submit_job_and_update_status(same)
    assert registered.hooks().count("submitted") == 1
    gate.open()
    await _all_done(first, [job])


async def test_a_job_without_jid_is_neither_submitted_nor_running(tmp_path):
    scheduler = LocalScheduler(tmp_path)
    assert not await scheduler.job_is_submitted_or_running(scheduler.create_job(0, "true"))


async def test_false_from_on_job_submitting_leaves_the_job_unsubmitted(tmp_path):
    class No:
        name = "no"

        @plugin.impl
        async def on_job_submitting(self, scheduler, job):
            return False

    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, ["touch", tmp_path / "ran"])
    with plugin.plugins_context([No()]):
        await scheduler.submit_job_and_update_status(job)
    assert job.jid is None
    assert not (tmp_path / "ran").exists()


async def test_a_failed_submission_is_told_in_files_and_by_on_job_failed_alone(
    tmp_path, registered
):
    class Refusing(LocalScheduler):
        name = "refusing"

        async def submit_job(self, job):
            raise RuntimeError("no such partition: shrot")

    scheduler = Refusing(tmp_path)
    job = scheduler.create_job(0, "true")
    await scheduler.submit_job_and_update_status(job)
    assert (job.status, job.rc) == (JobStatus.FAILED, -2)
    assert "no such partition: shrot" in job.stderr_file.read_text()
    assert job.rc_file.read_text().strip() == "-2"
    assert registered.hooks() == ["submitting", "failed"]


async def test_a_submission_cleans_what_an_earlier_run_left(tmp_path, gate):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", "exit 7"])
    await scheduler.submit_job_and_update_status(job)
    await _all_done(scheduler, [job])
    again = LocalScheduler(tmp_path)
    job = again.create_job(0, gate.command())
    assert job.rc == 7
    await again.submit_job_and_update_status(job)
    assert job.rc == -1
    gate.open()
    await _all_done(again, [job])
    assert job.rc == 0


# --- killing ------------------------------------------------------------------------------------


async def test_kill_job_ends_the_job_and_its_processes(tmp_path, until, job_processes):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "sleep 60")
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.RUNNING)
    await scheduler.kill_job(job)
    assert not await scheduler.job_is_running(job)
    assert job_processes() == []


async def test_a_kill_sets_status_and_calls_the_hooks(tmp_path, until, registered):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "sleep 60")
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.RUNNING)
    await scheduler.kill_job_and_update_status(job)
    assert job.status is JobStatus.FINISHED
    assert job.rc not in (0, -1)
    assert registered.hooks()[-2:] == ["killing", "killed"]


async def test_killing_a_job_that_has_ended_is_no_error(tmp_path):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    await scheduler.submit_job_and_update_status(job)
    await _all_done(scheduler, [job])
    await scheduler.kill_job(job)


async def test_false_from_on_job_killing_leaves_the_job_running(tmp_path, gate, until):
    class No:
        name = "no"

        @plugin.impl
        async def on_job_killing(self, scheduler, job):
            return False

    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, gate.command())
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.RUNNING)
    with plugin.plugins_context([No()]):
        await scheduler.kill_job_and_update_status(job)
    assert job.status is JobStatus.RUNNING
    assert await scheduler.job_is_running(job)
    gate.open()
    await _all_done(scheduler, [job])
    assert job.rc == 0


async def test_kill_running_jobs_kills_only_those_that_run(tmp_path, until, job_processes):
    scheduler = LocalScheduler(tmp_path)
    jobs = [scheduler.create_job(n, cmd) for n, cmd in enumerate(["sleep 60", "true", "sleep 60"])]
    for job in jobs[:2]:
        await scheduler.submit_job_and_update_status(job)
    await until(lambda: jobs[0].status == JobStatus.RUNNING)
    await until(lambda: jobs[1].status == JobStatus.FINISHED)
    await scheduler.kill_running_jobs(jobs)
    assert jobs[0].rc not in (0, -1)
    assert (jobs[1].rc, jobs[2].status) == (0, JobStatus.INIT)
    assert job_processes() == []


# --- retrying and polling -----------------------------------------------------------------------


async def test_retry_job_keeps_the_attempt_and_submits_the_next(tmp_path):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", "echo $XQUTE_JOB_TRIAL; exit 1"])
    await scheduler.submit_job_and_update_status(job)
    await _all_done(scheduler, [job])
    await scheduler.retry_job(job)
    assert job.trial_count == 1
    await _all_done(scheduler, [job])
    assert (job.retry_dir / "0" / "job.stdout").read_text() == "0\n"
    assert job.stdout_file.read_text() == "1\n"
    assert job.status is JobStatus.FAILED


async def test_polling_on_submittable_tells_whether_there_is_room(tmp_path, gate):
    scheduler = LocalScheduler(tmp_path, forks=2)
    jobs = [scheduler.create_job(n, gate.command()) for n in range(3)]
    rooms = []
    for job in jobs[:2]:
        rooms.append(await scheduler.polling_jobs(jobs, "submittable"))
        await scheduler.submit_job_and_update_status(job)
    rooms.append(await scheduler.polling_jobs(jobs, "submittable"))
    assert rooms == [True, True, False]
    gate.open()
    await _all_done(scheduler, jobs[:2])
    assert await scheduler.polling_jobs(jobs, "submittable", 1)


async def test_polling_on_all_done_calls_each_hook_once(tmp_path, registered):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    await scheduler.submit_job_and_update_status(job)
    await _all_done(scheduler, [job])
    for counter in range(3):
        assert await scheduler.polling_jobs([job], "all_done", polling_counter=counter)
    assert registered.hooks() == ["submitting", "submitted", "started", "succeeded"]


async def test_a_status_that_was_looked_at_in_between_does_not_swallow_a_hook(
    tmp_path, registered, until
):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.FINISHED)
    await _all_done(scheduler, [job])
    assert registered.hooks() == ["submitting", "submitted", "started", "succeeded"]


async def test_polling_calls_on_job_polling_with_the_counter(tmp_path, gate, until):
    seen = []

    class Poller:
        name = "poller"

        @plugin.impl
        async def on_job_polling(self, scheduler, job, counter):
            seen.append((job.index, counter))

    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(5, gate.command())
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.RUNNING)
    with plugin.plugins_context([Poller()]):
        assert not await scheduler.polling_jobs([job], "all_done", 41)
    assert seen == [(5, 41)]
    gate.open()
    await _all_done(scheduler, [job])


async def test_polling_on_anything_else_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="finished"):
        await LocalScheduler(tmp_path).polling_jobs([], "finished")


async def test_polling_notices_a_job_whose_wrapper_was_killed_from_outside(tmp_path, until):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "sleep 60")
    await scheduler.submit_job_and_update_status(job)
    await until(lambda: job.status == JobStatus.RUNNING)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(int(job.jid), signal.SIGKILL)
    await _all_done(scheduler, [job])
    assert job.status is JobStatus.FAILED
    assert job.rc != 0


async def test_the_script_can_be_run_by_hand_after_a_submission(tmp_path):
    """A second start of an attempt that has its end is refused by the claims."""
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, ["bash", "-c", f"echo ran >>{tmp_path}/log"])
    await scheduler.submit_job_and_update_status(job)
    await _all_done(scheduler, [job])
    script = str(job.metadir / "job.wrapped.local")
    process = await asyncio.create_subprocess_exec("bash", script)
    await process.wait()
    assert (tmp_path / "log").read_text() == "ran\n"
    assert job.rc == 0
