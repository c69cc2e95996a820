"""Feeding a run: forms of commands, indices, environments, keywords of single jobs."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from xqute import Job, JobOutcome, JobStatus, SpecPath, Xqute, XquteError, plugin
from xqute._engine.journal import Journal
from xqute.errors import SchedulerError
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


async def test_a_string_is_split_like_a_shell_splits_words(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("""printf '%s|' 'a b' "c" d\\ e""")
    await xq.run_until_complete()
    assert job.cmd == ("printf", "%s|", "a b", "c", "d e")
    assert job.stdout_file.read_text() == "a b|c|d e|"


async def test_the_items_of_a_list_or_tuple_go_through_str(tmp_path):
    xq = Xqute(workdir=tmp_path)
    jobs = [await xq.put(["echo", 1, tmp_path]), await xq.feed(("echo", 2.5, None))]
    await xq.run_until_complete()
    assert jobs[0].cmd == ("echo", "1", str(tmp_path))
    assert jobs[1].stdout_file.read_text() == "2.5 None\n"


async def test_a_job_is_fed_as_it_is(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = Job(0, ["echo", "mine"], tmp_path)
    assert await xq.put(job) is job
    await xq.run_until_complete()
    assert xq.jobs == [job]
    assert job.stdout_file.read_text() == "mine\n"


@pytest.mark.parametrize("verb", ["put", "feed"])
async def test_envs_merge_into_those_of_a_job(tmp_path, verb):
    xq = Xqute(workdir=tmp_path)
    command = ["bash", "-c", 'echo "$A-$B-$C"']
    job = Job(0, command, tmp_path, envs={"A": "job", "B": "job"})
    await getattr(xq, verb)(job, {"B": 2, "C": "fed"})
    other = await getattr(xq, verb)(command, envs={"A": 1, "B": "b c", "C": ""})
    await xq.run_until_complete()
    assert job.envs == {"A": "job", "B": "2", "C": "fed"}
    assert job.stdout_file.read_text() == "job-2-fed\n"
    assert other.stdout_file.read_text() == "1-b c-\n"


async def test_bytes_in_envs_arrive_whether_they_come_with_a_command_or_a_job(tmp_path):
    xq = Xqute(workdir=tmp_path)
    command = ["bash", "-c", 'printf %s "$A"']
    for given in (command, Job(1, command, tmp_path)):
        await xq.feed(given, {"A": b"\xff"})
    await xq.run_until_complete()
    assert [job.stdout_file.read_bytes() for job in xq.jobs] == [b"\xff"] * 2


async def test_a_command_takes_the_lowest_unused_index(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.put(Job(1, "true", tmp_path))
    await xq.put(Job(3, "true", tmp_path))
    fed = [(await xq.put("true")).index for _ in range(4)]
    assert fed == [0, 2, 4, 5]
    await xq.run_until_complete()
    assert [job.index for job in xq.jobs] == [1, 3, 0, 2, 4, 5]
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


async def test_an_engine_may_skip_indices(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=4)
    for index in (7, 2, 1000):
        await xq.put(Job(index, ["echo", index], tmp_path))
    await xq.run_until_complete()
    assert [job.index for job in xq.jobs] == [7, 2, 1000]
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["7\n", "2\n", "1000\n"]


async def test_a_second_job_of_one_index_is_an_error_that_harms_nobody(tmp_path):
    xq = Xqute(workdir=tmp_path)
    first = await xq.put(Job(4, ["echo", "first"], tmp_path))
    with pytest.raises(XquteError, match="4"):
        await xq.put(Job(4, ["echo", "second"], tmp_path))
    await xq.run_until_complete()
    assert xq.jobs == [first]
    assert first.stdout_file.read_text() == "first\n"


async def test_feed_has_keywords_that_become_attributes_of_the_job(tmp_path):
    xq = Xqute(workdir=tmp_path)
    given = {
        "name": "align",
        "timeout": 30,
        "num_retries": 2,
        "resources": {"cpus": 2},
        "scheduler_opts": {"nice": 5},
        "cwd": tmp_path,
        "inputs": ["a"],
        "outputs": ["b"],
    }
    job = await xq.feed("true", **given)
    await xq.run_until_complete()
    assert {name: getattr(job, name) for name in given} == given


async def test_the_keywords_of_feed_are_never_arguments_of_the_job_class(tmp_path):
    class MyJob(Job):
        __slots__ = (*Job.__slots__, "extra")

        def __init__(self, index, cmd, workdir, error_retry=None, num_retries=None, envs=None):
            super().__init__(index, cmd, workdir, error_retry, num_retries, envs)
            self.extra = "there"

    class Mine(LocalScheduler):
        name = "mine"
        job_class = MyJob

    xq = Xqute(Mine, workdir=tmp_path)
    job = await xq.feed("pwd", name="n", timeout=9, cwd="/")
    await xq.run_until_complete()
    assert type(job) is MyJob
    assert (job.name, job.timeout, job.extra) == ("n", 9, "there")
    assert job.stdout_file.read_text() == "/\n"


async def test_work_starts_at_the_first_feed(tmp_path, until):
    xq = Xqute(workdir=tmp_path / "w")
    await xq.put(["touch", tmp_path / "done"])
    await until((tmp_path / "done").exists)
    await xq.run_until_complete()


@pytest.mark.concurrency
async def test_feeding_goes_on_while_jobs_run(tmp_path, until, gate):
    xq = Xqute(workdir=tmp_path, forks=2)
    first = await xq.put(gate.command())
    await until(lambda: first.status == JobStatus.RUNNING)
    later = [await xq.put(["echo", n]) for n in range(5)]
    await asyncio.gather(*(job.wait() for job in later))
    assert first.status == JobStatus.RUNNING
    gate.open()
    await xq.run_until_complete()
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


@pytest.mark.concurrency
async def test_many_may_feed_at_once_and_each_gets_an_index_of_its_own(tmp_path):
    class SlowToStart(LocalScheduler):
        name = "slow"

        async def start(self):
            await asyncio.sleep(0.02)
            await super().start()

    xq = Xqute(SlowToStart, workdir=tmp_path, forks=4)
    jobs = await asyncio.gather(*(xq.put(["echo", n]) for n in range(10)))
    await xq.run_until_complete()
    assert sorted(job.index for job in jobs) == list(range(10))
    assert sorted(int(job.stdout_file.read_text()) for job in jobs) == list(range(10))


async def test_jobs_is_a_list_in_feeding_order_and_may_be_assigned(tmp_path):
    xq = Xqute(workdir=tmp_path)
    assert xq.jobs == []
    kept = [await xq.put("true"), await xq.put("true")]
    assert xq.jobs == kept
    xq.jobs = []
    third = await xq.put("true")
    assert third.index == 2
    assert xq.jobs == [third]
    await xq.run_until_complete()
    assert {job.outcome for job in [*kept, third]} == {JobOutcome.SUCCEEDED}


async def test_a_cancelled_feed_leaves_the_job_unfed_so_that_it_can_be_fed_again(tmp_path):
    class SlowInit:
        name = "slow_init"
        gate = asyncio.Event()

        @plugin.impl
        async def on_job_init(self, scheduler, job):
            await self.gate.wait()

    xq = Xqute(workdir=tmp_path, plugins=[SlowInit()])
    job = xq.scheduler.create_job(0, "true")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(xq.put(job), 0.05)
    SlowInit.gate.set()
    await xq.put(job)
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert xq.jobs == [job]


async def test_a_workdir_may_have_any_name(tmp_path):
    workdir = tmp_path / "a b'c\"$HOME`id`\n*ü\udcff\\"
    xq = Xqute(workdir=workdir)
    job = await xq.put(["bash", "-c", 'cd "$XQUTE_JOB_METADIR" && echo here >mine'])
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert (workdir / "0" / "mine").read_text() == "here\n"


@pytest.mark.parametrize("kind", [str, Path, SpecPath])
async def test_a_relative_workdir_stays_where_it_was_when_the_program_changes_its_folder(
    tmp_path, monkeypatch, kind
):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    xq = Xqute(workdir=kind("w"))
    monkeypatch.chdir(tmp_path / "other")
    await xq.put("true")
    await xq.run_until_complete()
    assert (tmp_path / "w" / "0" / "job.rc").read_text() == "0"
    assert not list((tmp_path / "other").iterdir())


def test_a_relative_workdir_keeps_its_mounted_side(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = LocalScheduler(SpecPath("w", mounted="/mnt/w")).workdir
    assert (str(workdir), str(workdir.mounted)) == (f"{tmp_path}/w", "/mnt/w")


async def test_a_job_may_live_in_another_workdir(tmp_path):
    xq = Xqute(workdir=tmp_path / "run")
    job = await xq.put(Job(3, "echo mine", tmp_path / "own"))
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert (tmp_path / "own" / "3" / "job.stdout").read_text() == "mine\n"


@pytest.mark.parametrize("kind", [str, Path, SpecPath])
async def test_a_job_with_a_relative_workdir_may_run_in_another_folder(tmp_path, monkeypatch, kind):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    xq = Xqute(workdir="w")
    job = await xq.put(Job(0, "pwd", kind("w")), cwd=tmp_path / "other")
    monkeypatch.chdir(tmp_path / "other")
    await xq.run_until_complete()
    assert (job.rc, job.outcome) == (0, JobOutcome.SUCCEEDED)
    assert job.stdout_file.read_text() == f"{tmp_path}/other\n"
    assert str(job.workdir) == f"{tmp_path}/w"
    assert not list((tmp_path / "other").iterdir())


@pytest.mark.parametrize("when", ["before it is fed", "when it is fed"])
async def test_a_job_folder_that_a_program_removes_is_made_again(tmp_path, when, make_plugin):
    async def remove(scheduler, job):
        if when == "when it is fed":
            shutil.rmtree(job.metadir)

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_init=remove)])
    job = xq.scheduler.create_job(0, "echo hi")
    if when == "before it is fed":
        shutil.rmtree(job.metadir)
    await xq.put(job)
    await xq.run_until_complete()
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "hi\n")


async def test_a_job_that_runs_again_is_not_overtaken_by_those_fed_after_it(tmp_path):
    """Of the first one only the intent is known, so that its attempt is made impossible first."""
    scheduler = LocalScheduler(tmp_path / "w")
    journal, _ = await Journal.open(f"{tmp_path}/w/.run/journal", "abc", durable=False)
    job = scheduler.create_job(0, ["true"])
    assert journal.sending(None, [(job, "0" * 16)]) is None
    await journal.close()
    async with Xqute(workdir=tmp_path / "w", on_change="rerun") as xq:
        for index in range(3):
            await xq.feed(["bash", "-c", f"echo {index} >>{tmp_path}/order"])
    assert (tmp_path / "order").read_text() == "0\n1\n2\n"
    assert [job.adopted for job in xq.jobs] == [False] * 3


# --- feeds that coincide with the end of the run ------------------------------------------------


def _feeds_slowly(why, monkeypatch, make_plugin):
    """Have each feed await something; give the plugins for that."""
    if why == "its turn":
        monkeypatch.setattr("xqute._engine.engine._TURN_S", -1.0)
        return []

    async def pause(scheduler, job):
        for _ in range(20):
            await asyncio.sleep(0)

    return [make_plugin(on_job_init=pause)]


@pytest.mark.concurrency
@pytest.mark.parametrize("why", ["its turn", "its hook"])
async def test_what_is_fed_when_the_last_job_has_ended_belongs_to_the_run(
    tmp_path, why, monkeypatch, make_plugin
):
    xq = Xqute(workdir=tmp_path, plugins=_feeds_slowly(why, monkeypatch, make_plugin))
    first = await xq.put("true")

    async def feed_more():
        await first.wait()
        return await xq.put("echo more")

    feeding = asyncio.create_task(feed_more())
    await asyncio.wait_for(xq.run_until_complete(), 20)
    second = await asyncio.wait_for(feeding, 20)
    assert (second.outcome, second.driver) == (JobOutcome.SUCCEEDED, None)
    assert second.stdout_file.read_text() == "more\n"
    assert xq.task.done()


@pytest.mark.parametrize("why", ["its turn", "its hook"])
async def test_a_consumer_of_completed_may_feed_while_another_task_waits_for_the_run(
    tmp_path, why, monkeypatch, make_plugin
):
    xq = Xqute(workdir=tmp_path, plugins=_feeds_slowly(why, monkeypatch, make_plugin))
    await xq.put(["echo", 0])
    waiting = asyncio.create_task(xq.run_until_complete())
    async with asyncio.timeout(20):
        async for job in xq.completed():
            if job.index < 3:
                await xq.put(["echo", job.index + 1])
        await waiting
    assert [job.stdout_file.read_text() for job in xq.jobs] == ["0\n", "1\n", "2\n", "3\n"]


async def test_a_feed_that_fails_when_all_others_have_ended_ends_the_run(tmp_path):
    """It is unknown whether its job is there, changed, from an earlier run."""
    away = asyncio.Event()

    class Away(LocalScheduler):
        name = "away"

        async def find_submitted(self, keys):
            await away.wait()
            raise SchedulerError("the controller is away")

    scheduler = LocalScheduler(tmp_path)
    journal, _ = await Journal.open(f"{tmp_path}/.run/journal", "abc", durable=False)
    assert journal.sending(None, [(scheduler.create_job(0, "true"), "0" * 16)]) is None
    await journal.close()
    xq = Xqute(Away, workdir=tmp_path)
    feeding = asyncio.create_task(xq.put(Job(0, "true", tmp_path)))
    other = await xq.put(Job(1, "true", tmp_path))
    await other.wait()

    async def consume():
        return [job async for job in xq.completed()]

    consuming = asyncio.create_task(consume())
    waiting = asyncio.create_task(xq.run_until_complete())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    assert not consuming.done()
    away.set()
    with pytest.raises(SchedulerError, match="away"):
        await feeding
    assert await asyncio.wait_for(consuming, 10) == [other]
    await asyncio.wait_for(waiting, 10)
    assert xq.jobs == [other]


async def _begin_to_feed(tmp_path, make_plugin):
    """Give a run whose first feed waits in `on_job_init`, that feed, and what it waits for."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def hang(scheduler, job):
        began.set()
        await go_on.wait()

    xq = Xqute(workdir=tmp_path, plugins=[make_plugin(on_job_init=hang)])
    feeding = asyncio.create_task(xq.put("true"))
    await began.wait()
    return xq, feeding, go_on


async def test_a_feed_that_is_cancelled_ends_the_run_and_those_who_wait_for_its_job(
    tmp_path, make_plugin
):
    xq, feeding, _ = await _begin_to_feed(tmp_path, make_plugin)
    job = xq.jobs[0]
    waiting = [asyncio.create_task(wait()) for wait in (xq.run_until_complete, job.wait)]
    await asyncio.sleep(0)
    feeding.cancel()
    done, _ = await asyncio.wait(waiting, timeout=10)
    assert len(done) == 2
    assert (xq.jobs, job.driver) == ([], None)


async def test_a_run_that_is_left_waits_for_the_feeds_that_are_under_way(tmp_path, make_plugin):
    xq, feeding, go_on = await _begin_to_feed(tmp_path, make_plugin)
    leaving = asyncio.create_task(xq.detach())
    await asyncio.sleep(0)
    go_on.set()
    job = await asyncio.wait_for(feeding, 10)
    await asyncio.wait_for(leaving, 10)
    assert (job.driver, job.outcome) == (None, None)
    assert not job.stdout_file.exists()
    assert xq.task.done()


async def test_a_stop_waits_for_a_feed_and_a_second_one_gives_its_hook_up(tmp_path, make_plugin):
    xq, feeding, _ = await _begin_to_feed(tmp_path, make_plugin)
    xq.cancel()
    waiting = asyncio.create_task(xq.run_until_complete())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiting.done()
    xq.cancel()
    await asyncio.wait_for(waiting, 10)
    assert (await feeding).outcome is JobOutcome.CANCELLED
