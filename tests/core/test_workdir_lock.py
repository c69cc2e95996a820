"""One run owns a workdir: a second is refused by name, one that is gone blocks nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import signal

import pytest

import xqute
from xqute import JobOutcome, WorkdirLockedError, Xqute, XquteError
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")

OWNER = """
    import asyncio, sys
    from xqute import Xqute

    async def main():
        xq = Xqute(workdir="w")
        await xq.put(["bash", "-c", "echo ready; sleep 60"])
        await xq.run_until_complete()

    asyncio.run(main())
"""


async def test_a_second_run_in_this_process_is_refused_by_name(tmp_path, gate):
    first, second = Xqute(workdir=tmp_path), Xqute(workdir=tmp_path)
    job = await first.put(gate.command())
    with pytest.raises(WorkdirLockedError) as caught:
        await second.put("true")
    assert isinstance(caught.value, XquteError | OSError)
    assert str(os.getpid()) in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    gate.open()
    await asyncio.gather(first.run_until_complete(), second.run_until_complete())
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_the_refused_run_damages_nothing_of_the_first(tmp_path, gate, until):
    first, second = Xqute(workdir=tmp_path), Xqute(workdir=tmp_path)
    job = await first.put(gate.command("echo kept; exit 3"))
    await until(job.status_file.exists)
    with pytest.raises(WorkdirLockedError):
        await second.put("echo other")
    gate.open()
    await first.run_until_complete()
    assert (job.rc, job.stdout_file.read_text()) == (3, "kept\n")
    assert second.jobs == []


async def test_a_run_of_another_process_is_refused_by_its_pid(tmp_path, start_driver, until):
    driver = start_driver(OWNER)
    stdout = tmp_path / "w" / "0" / "job.stdout"
    await until(lambda: stdout.exists() and stdout.read_text())
    xq = Xqute(workdir=tmp_path / "w")
    with pytest.raises(WorkdirLockedError, match=str(driver.process.pid)):
        await xq.put("true")
    driver.send(signal.SIGTERM)
    driver.finish(timeout_s=15)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED


async def test_another_name_of_the_same_folder_is_the_same_workdir(tmp_path, gate):
    (tmp_path / "w").mkdir()
    (tmp_path / "link").symlink_to("w")
    first, second = Xqute(workdir=tmp_path / "w"), Xqute(workdir=tmp_path / "link")
    await first.put(gate.command())
    with pytest.raises(WorkdirLockedError):
        await second.put("true")
    gate.open()
    await first.run_until_complete()


async def test_one_that_has_ended_frees_the_workdir(tmp_path):
    for n in range(3):
        xq = Xqute(workdir=tmp_path)
        job = await xq.put(["echo", n])
        await xq.run_until_complete()
        assert job.stdout_file.read_text() == f"{n}\n"


async def test_a_refused_run_can_begin_when_the_workdir_is_free(tmp_path):
    first, second = Xqute(workdir=tmp_path), Xqute(workdir=tmp_path)
    await first.put("true")
    with pytest.raises(WorkdirLockedError):
        await second.put("true")
    await first.run_until_complete()
    job = await second.put("echo mine")
    assert job.index == 0
    await second.run_until_complete()
    assert job.stdout_file.read_text() == "mine\n"


async def test_an_xqute_that_was_never_fed_owns_nothing(tmp_path):
    idle = Xqute(workdir=tmp_path)
    busy = Xqute(workdir=tmp_path)
    job = await busy.put("true")
    await busy.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    await idle.run_until_complete()


def test_an_abandoned_instance_of_a_closed_loop_does_not_block_the_next(tmp_path):
    loop = asyncio.new_event_loop()

    async def begin():
        xq = Xqute(workdir=tmp_path)
        await xq.run_until_complete(keep_feeding=True)
        await (await xq.put("true")).wait()
        return xq

    abandoned = loop.run_until_complete(begin())
    # Neither awaited nor cancelled: as a program does that calls loop.close() in a hurry.
    abandoned.task._log_destroy_pending = False
    loop.close()
    (job,) = xqute.run(["true"], workdir=tmp_path)
    assert job.outcome is JobOutcome.SUCCEEDED
    assert abandoned.task is not None


def test_after_an_abandoned_run_the_programs_signal_handlers_are_back(start_driver):
    driver = start_driver(
        """
        import asyncio, json, signal, xqute
        before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]

        async def begin():
            xq = xqute.Xqute(workdir="w")
            await xq.run_until_complete(keep_feeding=True)
            await (await xq.put("true")).wait()
            return xq

        loop = asyncio.new_event_loop()
        abandoned = loop.run_until_complete(begin())
        abandoned.task._log_destroy_pending = False
        loop.close()
        try:
            signal.raise_signal(signal.SIGINT)
            heard = False
        except KeyboardInterrupt:
            heard = True
        jobs = xqute.run(["true"], workdir="w")
        after = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        print(json.dumps([heard, before == after]), flush=True)
        """
    )
    assert driver.finish() == [True, True]


async def test_two_runs_in_two_workdirs_run_side_by_side(tmp_path):
    runs = [Xqute(workdir=tmp_path / str(n), forks=2) for n in range(2)]
    for n, xq in enumerate(runs):
        for _ in range(5):
            await xq.put(["echo", n])
    await asyncio.gather(*(xq.run_until_complete() for xq in runs))
    for n, xq in enumerate(runs):
        assert [job.stdout_file.read_text() for job in xq.jobs] == [f"{n}\n"] * 5


async def test_the_lock_is_not_handed_to_jobs(tmp_path):
    """A job that leaves something running must not keep the workdir locked."""
    first = Xqute(workdir=tmp_path)
    escaped = await first.put(["bash", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"])
    await first.run_until_complete()
    pid = int(escaped.stdout_file.read_text())
    try:
        second = Xqute(workdir=tmp_path)
        job = await second.put("true")
        await second.run_until_complete()
        assert job.outcome is JobOutcome.SUCCEEDED
    finally:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ["failed", "cancelled"])
async def test_a_run_that_could_not_begin_gives_all_back_and_may_begin_anew(
    tmp_path, how, monkeypatch
):
    calls = []

    class Noting(LocalScheduler):
        name = "noting"

        async def start(self):
            calls.append("start")
            await super().start()

        async def close(self):
            calls.append("close")
            await super().close()

    opening = asyncio.Event()

    async def open_journal(*args, **keywords):
        opening.set()
        if how == "failed":
            raise OSError(errno.EIO, "the disk is broken")
        await asyncio.Event().wait()

    xq = Xqute(Noting, workdir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("xqute._engine.session.Journal.open", open_journal)
        feeding = asyncio.create_task(xq.put("true"))
        await opening.wait()
        if how == "cancelled":
            feeding.cancel()
        with pytest.raises((OSError, asyncio.CancelledError)):
            await feeding
    assert calls == ["start", "close"]
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert calls == ["start", "close"] * 2
