"""Settings of a scheduler in a run, also when changed after construction: cwd, timeout, forks."""

from __future__ import annotations

import os

import pytest

from xqute import JobOutcome, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


# --- cwd, timeout, scripts ----------------------------------------------------------------------


async def test_cwd_of_the_scheduler_and_of_a_job(tmp_path):
    (tmp_path / "a b").mkdir()
    xq = Xqute(workdir=tmp_path / "w", scheduler_opts={"cwd": tmp_path / "a b"})
    jobs = [await xq.put("pwd"), await xq.feed("pwd", cwd="/")]
    await xq.run_until_complete()
    assert [job.stdout_file.read_text().rstrip("\n") for job in jobs] == [f"{tmp_path}/a b", "/"]


async def test_without_cwd_jobs_run_where_the_driver_is(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("pwd -P")
    await xq.run_until_complete()
    assert job.stdout_file.read_text().rstrip("\n") == os.getcwd()


async def test_the_timeout_of_the_scheduler_and_of_a_job(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=3, scheduler_opts={"timeout": 0.2})
    late = await xq.put("sleep 60")
    free = await xq.feed("sleep 0.4", timeout=0)
    longer = await xq.feed("sleep 0.4", timeout=30)
    await xq.run_until_complete()
    assert (late.outcome, late.cause) == (JobOutcome.TIMEOUT, "TIMEOUT")
    assert late.rc == 143
    assert (free.outcome, longer.outcome) == (JobOutcome.SUCCEEDED, JobOutcome.SUCCEEDED)


async def test_a_command_that_ends_with_0_at_its_timeout_has_timed_out(tmp_path):
    polite = "trap 'echo cleaned; exit 0' TERM; while :; do sleep 0.02; done"
    xq = Xqute(workdir=tmp_path, scheduler_opts={"timeout": 0.2})
    job = await xq.put(["bash", "-c", polite])
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "cleaned\n"
    assert (job.outcome, job.cause) == (JobOutcome.TIMEOUT, "TIMEOUT")
    assert job.rc == 0


async def test_an_exit_in_prescript_fails_the_job_with_that_code(tmp_path):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"prescript": "exit 9"})
    job = await xq.put("echo ran")
    await xq.run_until_complete()
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 9)
    assert job.stdout_file.read_text() == ""


async def test_postscript_runs_after_the_command_and_cannot_change_its_exit_code(tmp_path):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"postscript": "echo post; exit 0"})
    job = await xq.put(["bash", "-c", "echo cmd; exit 6"])
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "cmd\npost\n"
    assert (job.rc, job.outcome) == (6, JobOutcome.FAILED)


# --- changed after construction -----------------------------------------------------------------


async def test_what_is_changed_on_the_scheduler_is_read_at_submission(tmp_path):
    xq = Xqute(workdir=tmp_path / "a")
    scheduler = xq.scheduler
    scheduler.workdir = tmp_path / "b"
    scheduler.forks = 2
    scheduler.prescript = "echo pre"
    scheduler.postscript = "echo post"
    scheduler.cwd = "/"
    scheduler.timeout = 50
    job = await xq.put("pwd")
    await xq.run_until_complete()
    assert job.metadir == tmp_path / "b" / "0"
    assert job.stdout_file.read_text() == "pre\n/\npost\n"
    assert not (tmp_path / "a").exists()


async def test_a_change_between_two_submissions_counts_for_the_second(tmp_path):
    xq = Xqute(workdir=tmp_path)
    first = await xq.put("true")
    await first.wait()
    xq.scheduler.prescript = "echo changed"
    second = await xq.put("true")
    await xq.run_until_complete()
    assert (first.stdout_file.read_text(), second.stdout_file.read_text()) == ("", "changed\n")


async def test_forks_may_be_raised_while_jobs_run(tmp_path, gate, until):
    xq = Xqute(workdir=tmp_path)
    jobs = [await xq.put(gate.command()) for _ in range(4)]
    await until(lambda: jobs[0].status == 4)
    assert jobs[1].status == 2
    xq.scheduler.forks = 4
    extra = await xq.put("true")
    await until(lambda: [job.status for job in jobs] == [4] * 4)
    gate.open()
    await xq.run_until_complete()
    assert {job.outcome for job in [*jobs, extra]} == {JobOutcome.SUCCEEDED}


async def test_config_changed_after_construction_is_what_submission_sees(tmp_path):
    class Configured(LocalScheduler):
        name = "configured"

        def __init__(self, *args, image=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.config["image"] = image

        def jobcmd_init(self, job):
            return f"echo {self.config['image']}"

    xq = Xqute(Configured, workdir=tmp_path, scheduler_opts={"image": "old"})
    xq.scheduler.config["image"] = "new"
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "new\n"


async def test_forks_bounds_the_jobs_with_the_backend(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=3)
    # None of the first three ends before all have begun.
    met = f"until [[ $(grep -c + {tmp_path}/log) -ge 3 ]]; do sleep 0.01; done"
    command = ["bash", "-c", f"echo + >>{tmp_path}/log; {met}; echo - >>{tmp_path}/log"]
    for _ in range(10):
        await xq.put(command)
    await xq.run_until_complete()
    level, levels = 0, []
    for sign in (tmp_path / "log").read_text().split():
        level += 1 if sign == "+" else -1
        levels.append(level)
    assert (max(levels), levels[-1]) == (3, 0)


# --- opened and closed --------------------------------------------------------------------------


class Telling(LocalScheduler):
    """It notes what it is asked to do, and may refuse to start."""

    name = "telling"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.told = []
        self.refuse = False

    async def start(self):
        if self.refuse:
            raise ConnectionError("the controller is away")
        self.told.append("start")
        await super().start()

    async def close(self):
        self.told.append("close")
        await super().close()

    async def submit_job(self, job):
        self.told.append("submit")
        return await super().submit_job(job)


@pytest.mark.parametrize("end", ["completed", "cancelled", "halted"])
async def test_a_run_opens_its_scheduler_before_the_first_submission_and_closes_it(tmp_path, end):
    xq = Xqute(Telling, workdir=tmp_path, error_strategy="halt")
    assert xq.scheduler.told == []
    job = await xq.put("false" if end == "halted" else "true")
    await job.wait()
    if end == "cancelled":
        xq.cancel()
    await xq.run_until_complete()
    assert xq.scheduler.told == ["start", "submit", "close"]


async def test_a_scheduler_is_an_asynchronous_context(tmp_path):
    async with Telling(tmp_path) as scheduler:
        assert isinstance(scheduler, Telling)
        assert scheduler.told == ["start"]
    assert scheduler.told == ["start", "close"]


async def test_a_scheduler_that_cannot_start_is_told_at_feed_and_can_be_tried_again(tmp_path):
    xq = Xqute(Telling, workdir=tmp_path)
    xq.scheduler.refuse = True
    with pytest.raises(ConnectionError, match="away"):
        await xq.put("true")
    assert xq.jobs == []
    xq.scheduler.refuse = False
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.index, job.outcome) == (0, JobOutcome.SUCCEEDED)
