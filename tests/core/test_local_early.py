"""Wrappers that the local scheduler starts before the turn of their jobs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from xqute import JobOutcome, JobStatus, Xqute
from xqute._processes import ProcessTable

pytestmark = pytest.mark.usefixtures("job_processes")

BLOCKS = "until [[ -e go ]]; do sleep 0.01; done"
DRIVER = f"""
import xqute
jobs = [["bash", "-c", {BLOCKS!r}], *[["bash", "-c", "echo ran >>ran"]] * 4]
xqute.run(jobs, workdir="wd", forks=1, scheduler_opts={{"cwd": "."}})
"""


def _find_waiting(workdir):
    """The process ids of wrappers that await their turn, by the index of their jobs."""
    found = {}
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"await-turn" in words and words[2].startswith(os.fsencode(workdir)):
            found[int(words[2].split(b"/")[-2])] = int(entry)
    return found


@pytest.fixture
async def make_full(tmp_path, until):
    """Make a run whose only place is taken, until `go` is there; give the jobs that wait."""
    runs = []

    async def make(*plugins):
        xq = Xqute(
            workdir=tmp_path / "wd", forks=1, plugins=plugins, scheduler_opts={"cwd": tmp_path}
        )
        runs.append(xq)
        await xq.put(["bash", "-c", BLOCKS])
        return xq, [await xq.put(["bash", "-c", "echo $0 >>ran", str(i)]) for i in range(1, 5)]

    yield make
    (tmp_path / "go").touch()
    for xq in runs:
        await asyncio.wait_for(xq.run_until_complete(), 20)


async def test_two_are_started_early_and_have_done_nothing(make_full, tmp_path, until):
    _, jobs = await make_full()
    await until(lambda: _find_waiting(tmp_path).keys() == {1, 2})
    for job in jobs:
        assert job.status is JobStatus.QUEUED
        assert not any(name.startswith("job.start.") for name in os.listdir(job.local_dir))
    assert not (tmp_path / "ran").exists()


async def test_they_run_in_their_turn_as_the_process_they_are(make_full, tmp_path, until):
    xq, jobs = await make_full()
    waiting = await until(lambda: len(found := _find_waiting(tmp_path)) == 2 and found)
    (tmp_path / "go").touch()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert [str(job.jid) for job in jobs[:2]] == [str(waiting[1]), str(waiting[2])]
    assert [job.rc for job in jobs] == [0] * 4
    assert (tmp_path / "ran").read_text().split() == ["1", "2", "3", "4"]


async def test_the_wrapper_of_a_job_that_is_cancelled_ends_and_another_is_started(
    make_full, tmp_path, until
):
    xq, jobs = await make_full()
    await until(lambda: _find_waiting(tmp_path).keys() == {1, 2})
    await xq.scheduler.kill_job_and_update_status(jobs[0])
    assert jobs[0].outcome is JobOutcome.CANCELLED
    await until(lambda: _find_waiting(tmp_path).keys() == {2, 3})
    (tmp_path / "go").touch()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert (tmp_path / "ran").read_text().split() == ["2", "3", "4"]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGKILL])
async def test_one_that_is_killed_by_somebody_is_replaced_in_its_turn(
    make_full, tmp_path, until, sig
):
    xq, jobs = await make_full()
    waiting = await until(lambda: len(found := _find_waiting(tmp_path)) == 2 and found)
    os.kill(waiting[1], sig)
    (tmp_path / "go").touch()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 4
    assert [job.trial_count for job in jobs] == [0] * 4
    assert (tmp_path / "ran").read_text().split() == ["1", "2", "3", "4"]


async def test_none_is_started_early_where_a_plugin_has_a_say_in_the_submission(
    make_full, make_plugin, tmp_path, until
):
    async def change(scheduler, job):
        job.cmd = ("bash", "-c", f"echo changed{job.index} >>ran") if job.index else job.cmd

    xq, jobs = await make_full(make_plugin(on_job_submitting=change))
    await until(lambda: xq.jobs[0].status is JobStatus.RUNNING)
    assert _find_waiting(tmp_path) == {}
    (tmp_path / "go").touch()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert (tmp_path / "ran").read_text().split() == [f"changed{job.index}" for job in jobs]


async def test_a_job_with_resources_is_not_started_early(tmp_path, until):
    xq = Xqute(workdir=tmp_path / "wd", forks=1, scheduler_opts={"cwd": tmp_path})
    await xq.put(["bash", "-c", BLOCKS])
    await xq.put(["true"], resources={"cpus": 1})
    last = await xq.put(["true"])
    await until(lambda: _find_waiting(tmp_path).keys() == {last.index})
    (tmp_path / "go").touch()
    await asyncio.wait_for(xq.run_until_complete(), 20)
    assert [job.rc for job in xq.jobs] == [0, 0, 0]


async def test_none_outlives_a_driver_that_was_killed(tmp_path, until):
    driver = await asyncio.create_subprocess_exec(sys.executable, "-c", DRIVER, cwd=tmp_path)
    try:
        await until(lambda: len(_find_waiting(tmp_path)) == 2)
    finally:
        driver.kill()
        await driver.wait()
    await until(lambda: not _find_waiting(tmp_path))
    (tmp_path / "go").touch()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("end", ["killed", "dismissed"])
async def test_the_end_of_one_that_never_had_its_turn_is_not_told(end):
    told = []
    table = ProcessTable(lambda *exit_: told.append(exit_))
    table.attach(asyncio.get_running_loop())
    early = table.spawn_early(["/bin/bash", "-c", "read || exit 121"], "early")
    other = table.spawn(["/bin/bash", "-c", "exit 3"], "other")
    if end == "killed":
        os.kill(early, signal.SIGKILL)
    else:
        table.dismiss(early)
    await table.drain(20)
    table.detach()
    assert told == [(other, "other", 3)]
    assert not table.give_turn(early)


async def test_none_is_started_in_vain(monkeypatch, tmp_path):
    """The jobs of a plan are on their way, also while others are submitted before them."""
    monkeypatch.setattr("xqute._engine.submitting._TURN_S", 0.0)
    started = []
    for name in ("spawn", "spawn_early"):
        method = getattr(ProcessTable, name)

        def counts(self, argv, job, method=method):
            started.append(job.index)
            return method(self, argv, job)

        monkeypatch.setattr(ProcessTable, name, counts)
    async with Xqute(workdir=tmp_path / "wd", forks=6) as xq:
        for _ in range(40):
            await xq.feed(["true"])
    assert sorted(started) == list(range(40))
