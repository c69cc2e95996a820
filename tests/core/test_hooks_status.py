"""Plugins that take matters into their own hands: statuses set, jobs submitted by themselves."""

from __future__ import annotations

import asyncio

import pytest

from xqute import JobOutcome, JobStatus, Scheduler, Xqute

pytestmark = pytest.mark.usefixtures("job_processes")


# --- on_job_submitting --------------------------------------------------------------------------


async def test_false_from_on_job_submitting_cancels_the_job(tmp_path, recorder, make_plugin):
    async def veto(scheduler, job):
        return False if job.index == 1 else None

    xq = Xqute(workdir=tmp_path, plugins=[recorder, make_plugin(on_job_submitting=veto)])
    jobs = [await xq.put("true") for _ in range(3)]
    await xq.run_until_complete()
    assert [job.outcome for job in jobs] == [
        JobOutcome.SUCCEEDED,
        JobOutcome.CANCELLED,
        JobOutcome.SUCCEEDED,
    ]
    assert not (jobs[1].metadir / "job.wrapped.local").exists()
    assert recorder.hooks(1) == ["init", "queued", "submitting"]


async def test_one_false_is_enough_whatever_others_say(tmp_path, make_plugin):
    async def yes(scheduler, job):
        return True

    async def no(scheduler, job):
        return False

    one, two, three = (make_plugin(on_job_submitting=f) for f in (yes, no, yes))
    one.name, two.name, three.name = "one", "two", "three"
    xq = Xqute(workdir=tmp_path, plugins=[one, two, three])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.CANCELLED


@pytest.mark.parametrize("answer", [None, True])
async def test_none_and_true_let_the_job_go(tmp_path, answer, make_plugin):
    async def say(scheduler, job):
        return answer

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=say)])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(JobStatus.FINISHED, JobOutcome.SUCCEEDED), (JobStatus.FAILED, JobOutcome.FAILED)],
)
async def test_a_cached_job_is_done_with_the_status_that_the_plugin_set(
    tmp_path, status, outcome, make_plugin
):
    async def cached(scheduler, job):
        if job.index != 1:
            return None
        job.status = status
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=cached)])
    jobs = [await xq.put(["touch", tmp_path / f"ran{n}"]) for n in range(3)]
    await xq.run_until_complete()
    assert (jobs[1].status, jobs[1].outcome) == (status, outcome)
    assert sorted(path.name for path in tmp_path.glob("ran*")) == ["ran0", "ran2"]


async def test_a_cached_job_keeps_the_files_and_rc_of_the_run_before(tmp_path, make_plugin):
    first = Xqute(workdir=tmp_path)
    await first.put("echo result")
    await first.run_until_complete()

    async def cached(scheduler, job):
        if job.rc == 0:
            job.status = JobStatus.FINISHED
            return False
        return None

    second = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=cached)])
    job = await second.put("echo other")
    await second.run_until_complete()
    assert (job.rc, job.status) == (0, JobStatus.FINISHED)
    assert job.stdout_file.read_text() == "result\n"


async def test_a_job_that_a_plugin_submits_by_itself_is_watched(tmp_path, recorder, make_plugin):
    async def submit(scheduler, job):
        job.jid = await scheduler.submit_job(job)
        job.status = JobStatus.SUBMITTED
        return False

    xq = Xqute(workdir=tmp_path, plugins=[recorder, make_plugin(on_job_submitting=submit)], forks=2)
    jobs = [await xq.put(["bash", "-c", f"echo {n}; exit {n}"]) for n in range(3)]
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert [job.rc for job in jobs] == [0, 1, 2]
    assert [job.stdout_file.read_text() for job in jobs] == ["0\n", "1\n", "2\n"]
    assert all(job.jid_file.read_text().strip() == str(job.jid) for job in jobs)
    assert recorder.hooks(0)[-2:] == ["started", "succeeded"]
    assert recorder.hooks(1)[-2:] == ["started", "failed"]


async def test_a_job_that_a_plugin_starts_as_a_process_of_its_own_is_watched(tmp_path, make_plugin):
    processes = []

    async def submit(scheduler, job):
        process = await asyncio.create_subprocess_exec(
            "/bin/bash", str(scheduler.wrapped_job_script(job)), start_new_session=True
        )
        processes.append(process)
        job.jid = process.pid
        job.status = JobStatus.SUBMITTED
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=submit)])
    jobs = [await xq.put("sleep 0.3"), await xq.put(["bash", "-c", "exit 6"])]
    await asyncio.wait_for(xq.run_until_complete(), 20)
    for process in processes:
        await process.wait()
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED, JobOutcome.FAILED]
    assert [job.rc for job in jobs] == [0, 6]


async def test_a_job_that_a_plugin_has_submitted_can_be_killed(
    tmp_path, until, job_processes, make_plugin
):
    async def submit(scheduler, job):
        job.jid = await scheduler.submit_job(job)
        job.status = JobStatus.SUBMITTED
        return False

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=submit)])
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.KILLED
    assert job_processes() == []


@pytest.mark.parametrize(
    ("statuses", "outcome"),
    [
        ([JobStatus.KILLING], JobOutcome.SUCCEEDED),
        ([JobStatus.RETRYING], JobOutcome.SUCCEEDED),
        ([JobStatus.INIT], JobOutcome.SUCCEEDED),
        ([JobStatus.SUBMITTED, JobStatus.KILLING, JobStatus.QUEUED], JobOutcome.SUCCEEDED),
        ([JobStatus.FAILED, JobStatus.RETRYING], JobOutcome.FAILED),
    ],
    ids=str,
)
async def test_a_status_from_which_nothing_is_submitted_does_not_count_before_the_submission(
    tmp_path, statuses, outcome, make_plugin, caplog
):
    async def set_them(scheduler, job):
        for status in statuses:
            job.status = status

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_submitting=set_them)])
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.outcome is outcome
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    ignored = {JobStatus.INIT, JobStatus.KILLING, JobStatus.RETRYING}.intersection(statuses)
    assert warning.endswith(f"a plugin cannot make it {ignored.pop().name}")


# --- statuses set while the backend has the job -------------------------------------------------


class Remote(Scheduler):
    """A backend that only a plugin can tell about."""

    name = "remote"

    async def submit_job(self, job):
        return f"remote-{job.index}"

    async def kill_job(self, job):
        pass

    async def job_is_running(self, job):
        return True


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(JobStatus.FINISHED, JobOutcome.SUCCEEDED), (JobStatus.FAILED, JobOutcome.FAILED)],
)
async def test_a_terminal_status_set_from_outside_sticks_and_ends_the_watching(
    tmp_path, until, recorder, status, outcome
):
    xq = Xqute(Remote, workdir=tmp_path, plugins=[recorder])
    job = await xq.put("true")
    other = await xq.put("true")
    await until(lambda: job.status == JobStatus.SUBMITTED)
    job.status = JobStatus.RUNNING
    assert job.status is JobStatus.RUNNING
    job.status = status
    await asyncio.wait_for(job.wait(), 5)
    assert (job.status, job.outcome) == (status, outcome)
    await until(lambda: other.status == JobStatus.SUBMITTED)
    other.status = JobStatus.FINISHED
    await asyncio.wait_for(xq.run_until_complete(), 5)
    last = "succeeded" if status == JobStatus.FINISHED else "failed"
    assert recorder.hooks(0)[-2:] == ["started", last]
    assert job.status is status


async def test_a_status_set_by_a_polling_plugin_ends_the_watching(tmp_path, make_plugin):
    async def poll(scheduler, job):
        job.status = JobStatus.FINISHED

    async def started(scheduler, job):
        job.status = JobStatus.RUNNING

    xq = Xqute(
        Remote,
        workdir=tmp_path,
        plugins=[make_plugin(on_job_polling=poll, on_job_submitted=started)],
    )
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (job.status, job.outcome) == (JobStatus.FINISHED, JobOutcome.SUCCEEDED)


async def test_a_failure_set_from_outside_sticks_under_retry_too(tmp_path, until):
    xq = Xqute(Remote, workdir=tmp_path, error_strategy="retry")
    job = await xq.put("true")
    await until(lambda: job.status == JobStatus.SUBMITTED)
    job.status = JobStatus.FAILED
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert (job.trial_count, job.status, job.outcome) == (0, JobStatus.FAILED, JobOutcome.FAILED)
