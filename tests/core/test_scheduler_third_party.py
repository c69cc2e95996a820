"""Schedulers as third parties publish them, written for the three methods, under the engine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from xqute import JobOutcome, JobStatus, Scheduler, Xqute

pytestmark = pytest.mark.usefixtures("job_processes")


class ClusterScheduler(Scheduler):
    """Submits by a client program that answers with a job id; the job is nobody's child."""

    name = "cluster"
    prefix = "job-"

    async def submit_job(self, job):
        script = self.wrapped_job_script(job)
        client = await asyncio.create_subprocess_exec(
            "/bin/bash",
            "-c",
            'setsid /bin/bash "$0" </dev/null >/dev/null 2>&1 & echo "$!"',
            str(script),
            stdout=subprocess.PIPE,
        )
        stdout, _ = await client.communicate()
        return f"{self.prefix}{int(stdout)}"

    def _pid(self, job):
        return int(str(job.jid).removeprefix(self.prefix))

    async def kill_job(self, job):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pid(job), signal.SIGTERM)

    async def job_is_running(self, job):
        try:
            stat = await asyncio.to_thread(Path(f"/proc/{self._pid(job)}/stat").read_text)
        except FileNotFoundError:
            return False
        return stat.rpartition(") ")[2][0] != "Z"


@pytest.fixture(params=["process", "cluster"])
def cls(request, process_scheduler):
    return process_scheduler if request.param == "process" else ClusterScheduler


async def test_three_methods_are_enough_to_run_jobs(tmp_path, cls):
    xq = Xqute(cls, workdir=tmp_path, forks=4)
    for n in range(8):
        await xq.put(["bash", "-c", f"echo {n}; exit {n % 3}"])
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert [job.rc for job in xq.jobs] == [n % 3 for n in range(8)]
    assert [job.stdout_file.read_text() for job in xq.jobs] == [f"{n}\n" for n in range(8)]
    assert all((job.metadir / f"job.wrapped.{cls.name}").exists() for job in xq.jobs)


async def test_the_end_of_a_job_is_heard_without_waiting_for_a_poll(tmp_path, cls):
    xq = Xqute(cls, workdir=tmp_path, scheduler_opts={"recheck_interval": 1000})
    xq.scheduler.first_recheck_s = 1000
    for _ in range(5):
        await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


class DryScheduler(ClusterScheduler):
    """Runs nothing: what it submits has ended, which only files tell."""

    name = "dry"

    async def submit_job(self, job):
        failed = job.index % 3
        job.rc_file.write_text(str(failed))
        job.status_file.write_text(str(int(JobStatus.FAILED if failed else JobStatus.FINISHED)))
        return f"dry-{job.index}"

    async def job_is_running(self, job):
        return False


async def test_what_has_ended_when_it_is_submitted_waits_for_no_poll(tmp_path):
    xq = Xqute(DryScheduler, workdir=tmp_path, scheduler_opts={"recheck_interval": 1000})
    xq.scheduler.first_recheck_s = 1000
    for _ in range(6):
        await xq.put("never run")
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert [(job.outcome, job.rc) for job in xq.jobs] == [
        (JobOutcome.FAILED if n % 3 else JobOutcome.SUCCEEDED, n % 3) for n in range(6)
    ]


async def test_hooks_come_in_order(tmp_path, cls, recorder):
    xq = Xqute(cls, workdir=tmp_path, plugins=[recorder], error_strategy="retry", num_retries=1)
    await xq.put("false")
    await xq.run_until_complete()
    attempt = ["queued", "submitting", "submitted", "started", "failed"]
    assert recorder.hooks() == ["init", *attempt, *attempt]


@pytest.mark.concurrency
async def test_cancel_kills_their_jobs(tmp_path, cls, until, job_processes):
    xq = Xqute(cls, workdir=tmp_path, forks=2)
    for _ in range(3):
        await xq.put("sleep 60")
    await until(lambda: [job.status for job in xq.jobs[:2]] == [JobStatus.RUNNING] * 2)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert [job.outcome for job in xq.jobs] == [
        JobOutcome.KILLED,
        JobOutcome.KILLED,
        JobOutcome.CANCELLED,
    ]
    await until(lambda: job_processes() == [])


async def test_a_timeout_is_kept_for_them(tmp_path, cls):
    xq = Xqute(cls, workdir=tmp_path)
    job = await xq.feed("sleep 60", timeout=0.3)
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.TIMEOUT


async def test_the_jid_is_what_submit_job_gave(tmp_path, cls):
    xq = Xqute(cls, workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert str(job.jid).startswith(getattr(cls, "prefix", ""))
    assert job.jid_file.read_text().strip() == str(job.jid)
