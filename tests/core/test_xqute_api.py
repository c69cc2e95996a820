"""The face of a run: making an `Xqute`, feeding it, waiting for it, and `xqute.run`."""

from __future__ import annotations

import asyncio

import pytest

import xqute
from xqute import JobOutcome, JobStatus, SpecPath, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


# --- making one ---------------------------------------------------------------------------------


def test_outside_a_running_loop_it_refuses_to_be_made(tmp_path):
    with pytest.raises(RuntimeError, match="event loop"):
        Xqute(workdir=tmp_path)


async def test_all_but_the_scheduler_are_keywords(tmp_path):
    with pytest.raises(TypeError):
        Xqute("local", None, tmp_path)


async def test_the_keywords_have_the_documented_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    xq = Xqute()
    assert isinstance(xq.scheduler, LocalScheduler)
    assert xq.scheduler.workdir == tmp_path / ".xqute"
    assert xq.scheduler.forks == 1
    assert xq.scheduler.error_strategy == "ignore"
    assert xq.scheduler.num_retries == 3
    assert xq.scheduler.submission_batch == xqute.defaults.DEFAULT_SUBMISSION_BATCH
    assert xq.scheduler.jobname_prefix == "local"


async def test_the_keywords_reach_the_scheduler(tmp_path):
    xq = Xqute(
        workdir=tmp_path / "w",
        submission_batch=5,
        error_strategy="retry",
        num_retries=7,
        forks=4,
        jobname_prefix="mine",
        scheduler_opts={"prescript": "echo pre", "timeout": 8},
    )
    scheduler = xq.scheduler
    assert (scheduler.submission_batch, scheduler.error_strategy) == (5, "retry")
    assert (scheduler.num_retries, scheduler.forks, scheduler.jobname_prefix) == (7, 4, "mine")
    assert (scheduler.prescript, scheduler.timeout) == ("echo pre", 8)
    assert isinstance(scheduler.workdir, SpecPath)


async def test_scheduler_opts_win_over_keywords_of_the_same_name(tmp_path):
    opts = {"forks": 3, "submission_batch": 2}
    xq = Xqute(workdir=tmp_path, forks=4, scheduler_opts=opts)
    assert (xq.scheduler.forks, xq.scheduler.submission_batch) == (3, 2)


async def test_a_scheduler_is_given_as_a_name_or_as_a_class(tmp_path):
    class Mine(LocalScheduler):
        name = "mine"

    assert type(Xqute("local", workdir=tmp_path).scheduler) is LocalScheduler
    xq = Xqute(Mine, workdir=tmp_path)
    assert type(xq.scheduler) is Mine
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert (job.metadir / "job.wrapped.mine").exists()


async def test_its_name_is_xqute_and_attributes_may_be_added(tmp_path):
    xq = Xqute(workdir=tmp_path)
    xq.proc = object()
    assert xq.name == "Xqute"
    assert xq.proc is not None


async def test_there_is_no_context_of_plugins_for_others_to_end(tmp_path):
    assert not Xqute(workdir=tmp_path).plugin_context


async def test_making_one_touches_no_file_and_starts_nothing(tmp_path):
    tasks = asyncio.all_tasks()
    Xqute(workdir=tmp_path / "not-there-yet")
    assert not (tmp_path / "not-there-yet").exists()
    assert asyncio.all_tasks() == tasks


# --- waiting ------------------------------------------------------------------------------------


async def test_run_until_complete_returns_none_when_all_have_ended(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=3)
    for n in range(7):
        await xq.put(["bash", "-c", f"exit {n}"])
    assert await xq.run_until_complete() is None
    assert [job.rc for job in xq.jobs] == list(range(7))
    assert {job.status for job in xq.jobs} == {JobStatus.FINISHED, JobStatus.FAILED}


async def test_without_jobs_it_returns_at_once(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert recorder.shutdowns == [None]


async def test_keep_feeding_returns_at_once_and_stop_feeding_waits(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=2)
    assert not xq.is_feeding()
    await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(keep_feeding=True), 5)
    assert xq.is_feeding()
    first = await xq.put(["bash", "-c", "sleep 0.1; exit 3"])
    await first.wait()
    assert xq.is_feeding()
    second = await xq.put(["echo", "more"])
    await xq.stop_feeding()
    assert not xq.is_feeding()
    assert (first.rc, second.outcome) == (3, JobOutcome.SUCCEEDED)


async def test_keep_feeding_may_come_before_the_first_command(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.run_until_complete(keep_feeding=True)
    job = await xq.put("true")
    await xq.stop_feeding()
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_keep_feeding_without_any_command_ends_too(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.run_until_complete(keep_feeding=True)
    await asyncio.wait_for(xq.stop_feeding(), 5)
    assert not xq.is_feeding()


async def test_run_until_complete_may_be_called_twice(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_two_tasks_may_wait_for_one_run(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("sleep 0.1")
    await asyncio.gather(xq.run_until_complete(), xq.run_until_complete())
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_a_run_that_has_ended_can_be_fed_again(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.put(["echo", "a"])
    await xq.run_until_complete()
    job = await xq.put(["echo", "b"])
    await xq.run_until_complete()
    assert job.index == 1
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["a\n", "b\n"]
