"""Hooks: which come when, with which status, in which order, and what their code does in bash."""

from __future__ import annotations

import asyncio

import pytest

from xqute import JobOutcome, JobStatus, Xqute, plugin

pytestmark = pytest.mark.usefixtures("job_processes")


# --- which hooks, when --------------------------------------------------------------------------


async def test_the_hooks_of_a_success_and_of_a_failure(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    await xq.put("true")
    await xq.put("false")
    await xq.run_until_complete()
    before = ["init", "queued", "submitting", "submitted", "started"]
    assert recorder.hooks(0) == [*before, "succeeded"]
    assert recorder.hooks(1) == [*before, "failed"]


async def test_the_status_during_each_hook(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    await xq.put("true")
    await xq.run_until_complete()
    statuses = {hook: status for hook, _, status, _ in recorder.calls}
    assert statuses["init"] == JobStatus.INIT
    assert statuses["queued"] == JobStatus.QUEUED
    assert statuses["submitting"] == JobStatus.QUEUED
    assert statuses["submitted"] >= JobStatus.SUBMITTED
    assert statuses["started"] >= JobStatus.RUNNING
    assert statuses["succeeded"] == JobStatus.FINISHED


async def test_the_hooks_of_a_kill(tmp_path, recorder, until):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await xq.run_until_complete()
    assert recorder.hooks()[-3:] == ["started", "killing", "killed"]


async def test_a_cancelled_job_has_no_terminal_hook(tmp_path, recorder, until):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    running, waiting = await xq.put("sleep 60"), await xq.put("true")
    await until(lambda: running.status == JobStatus.RUNNING)
    xq.cancel()
    await xq.run_until_complete()
    assert waiting.outcome is JobOutcome.CANCELLED
    assert recorder.hooks(1) == ["init", "queued"]


@pytest.mark.concurrency
async def test_on_job_started_comes_once_per_attempt_and_before_the_terminal_hook(
    tmp_path, recorder
):
    xq = Xqute(workdir=tmp_path, plugins=[recorder], forks=4, error_strategy="retry", num_retries=2)
    for _ in range(6):
        await xq.put("false")
    await xq.run_until_complete()
    for index in range(6):
        hooks = [hook for hook in recorder.hooks(index) if hook in ("started", "failed")]
        assert hooks == ["started", "failed"] * 3


async def test_on_init_gets_the_xqute_and_on_shutdown_comes_once(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    assert recorder.inits == [xq]
    await xq.put("true")
    await xq.run_until_complete()
    await xq.run_until_complete()
    assert recorder.shutdowns == [None]


async def test_on_init_may_change_the_run(tmp_path):
    class Changes:
        name = "changes"

        @plugin.impl
        def on_init(self, xqute):
            xqute.scheduler.forks = 7
            xqute.note = "was here"

    xq = Xqute(workdir=tmp_path, plugins=[Changes()])
    assert (xq.scheduler.forks, xq.note) == (7, "was here")


async def test_on_job_init_may_give_the_job_its_command(tmp_path):
    class Prepares:
        name = "prepares"

        @plugin.impl
        async def on_job_init(self, scheduler, job):
            await asyncio.sleep(0)
            job.cmd = ["bash", "-c", "echo $GIVEN"]
            job.envs["GIVEN"] = "given"

    xq = Xqute(workdir=tmp_path, plugins=[Prepares()])
    job = await xq.put(xq.scheduler.create_job(0, ""))
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "given\n"


async def test_on_job_polling_comes_about_once_a_second_while_a_job_runs(tmp_path, gate, until):
    seen = []

    class Poller:
        name = "poller"

        @plugin.impl
        async def on_job_polling(self, scheduler, job, counter):
            seen.append((job.index, job.status, counter))

    xq = Xqute(workdir=tmp_path, plugins=[Poller()])
    await xq.put(gate.command())
    waiting = await xq.put("true")
    began_s = asyncio.get_running_loop().time()
    await until(lambda: len(seen) == 2)
    took_s = asyncio.get_running_loop().time() - began_s
    gate.open()
    await xq.run_until_complete()
    assert 1.0 < took_s < 4.0
    assert [(index, status) for index, status, _ in seen] == [(0, JobStatus.RUNNING)] * 2
    assert seen[0][2] < seen[1][2]
    assert waiting.outcome is JobOutcome.SUCCEEDED


async def test_a_slow_hook_holds_only_its_own_job(tmp_path, until):
    release = asyncio.Event()

    class Slow:
        name = "slow"

        @plugin.impl
        async def on_job_succeeded(self, scheduler, job):
            if job.index == 0:
                await release.wait()

    xq = Xqute(workdir=tmp_path, plugins=[Slow()])
    jobs = [await xq.put("true") for _ in range(4)]
    await asyncio.gather(*(job.wait() for job in jobs[1:]))
    release.set()
    await xq.run_until_complete()
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}


async def test_the_code_of_the_jobcmd_hooks_goes_around_the_command(tmp_path):
    class Inserts:
        name = "inserts"

        @plugin.impl
        def on_jobcmd_init(self, scheduler, job):
            return "echo init"

        @plugin.impl
        def on_jobcmd_prep(self, scheduler, job):
            return f'echo prep {job.index}; cmd="{{ $cmd; echo also; exit 5; }}"'

        @plugin.impl
        def on_jobcmd_end(self, scheduler, job):
            return "echo end $rc"

    xq = Xqute(
        workdir=tmp_path,
        plugins=[Inserts()],
        scheduler_opts={"prescript": "echo pre", "postscript": "echo post"},
    )
    job = await xq.put("echo cmd")
    await xq.run_until_complete()
    lines = job.stdout_file.read_text().splitlines()
    assert lines == ["init", "pre", "prep 0", "cmd", "also", "post", "end 5"]
    assert job.rc == 5


async def test_the_code_is_inserted_in_plugin_priority_order(tmp_path):
    def make(name, priority):
        class Inserts:
            @plugin.impl
            def on_jobcmd_init(self, scheduler, job):
                return f"echo {name}"

        inserts = Inserts()
        inserts.name, inserts.priority = name, priority
        return inserts

    xq = Xqute(workdir=tmp_path, plugins=[make("last", 5), make("first", -5), make("middle", 0)])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.stdout_file.read_text().split() == ["first", "middle", "last"]
