"""Plugins that raise, talk nonsense, hang or break a script: told by name, at no other's cost."""

from __future__ import annotations

import asyncio

import pytest

from xqute import JobOutcome, JobStatus, Xqute, plugin

pytestmark = pytest.mark.usefixtures("job_processes")

ASYNC_HOOKS = [
    "on_job_init",
    "on_job_queued",
    "on_job_submitting",
    "on_job_submitted",
    "on_job_started",
    "on_job_failed",
    "on_job_succeeded",
]


def raising(hook, name="clumsy", exc=ZeroDivisionError):
    async def implementation(self, scheduler, job):
        raise exc(f"in {hook}")

    implementation.__name__ = hook
    return type("Clumsy", (), {"name": name, "priority": -1, hook: plugin.impl(implementation)})()


@pytest.mark.parametrize("hook", ASYNC_HOOKS)
async def test_a_hook_that_raises_is_logged_with_its_plugins_name_and_harms_nobody(
    tmp_path, hook, recorder, caplog
):
    xq = Xqute(workdir=tmp_path, plugins=[raising(hook), recorder], forks=2)
    good, bad = await xq.put("true"), await xq.put("false")
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert (good.outcome, bad.outcome) == (JobOutcome.SUCCEEDED, JobOutcome.FAILED)
    assert "clumsy" in caplog.text
    assert hook in caplog.text
    # The next implementation was called all the same.
    assert hook.removeprefix("on_job_") in recorder.hooks()


async def test_a_raising_on_job_killing_or_killed_does_not_keep_a_job_alive(
    tmp_path, until, recorder, caplog, job_processes
):
    plugins = [raising("on_job_killing", "one"), raising("on_job_killed", "two"), recorder]
    xq = Xqute(workdir=tmp_path, plugins=plugins)
    job = await xq.put("sleep 60")
    await until(lambda: job.status == JobStatus.RUNNING)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.KILLED
    assert recorder.hooks()[-2:] == ["killing", "killed"]
    assert "one" in caplog.text
    assert "two" in caplog.text
    assert job_processes() == []


async def test_synchronous_hooks_that_raise_harm_nobody(tmp_path, recorder, caplog):
    class Clumsy:
        name = "clumsy"
        priority = -1

        @plugin.impl
        def on_init(self, xqute):
            raise ZeroDivisionError("in on_init")

        @plugin.impl
        def on_shutdown(self, xqute, sig):
            raise ZeroDivisionError("in on_shutdown")

        @plugin.impl
        def on_jobcmd_prep(self, scheduler, job):
            raise ZeroDivisionError("in on_jobcmd_prep")

    xq = Xqute(workdir=tmp_path, plugins=[Clumsy(), recorder])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert (recorder.inits, recorder.shutdowns) == ([xq], [None])
    for hook in ("on_init", "on_shutdown", "on_jobcmd_prep"):
        assert f"in {hook}" in caplog.text
    assert "clumsy" in caplog.text


async def test_a_hook_that_raises_cancelled_error_does_not_stop_the_run(tmp_path, recorder):
    plugins = [raising("on_job_started", exc=asyncio.CancelledError), recorder]
    xq = Xqute(workdir=tmp_path, plugins=plugins)
    jobs = [await xq.put("true"), await xq.put("true")]
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}
    assert recorder.hooks(0)[-1] == "succeeded"


@pytest.mark.parametrize("nonsense", ["no", 0, [], {}, object(), 3.5])
async def test_nonsense_from_on_job_submitting_is_told_and_ignored(tmp_path, nonsense, caplog):
    class Nonsense:
        name = "nonsensical"

        @plugin.impl
        async def on_job_submitting(self, scheduler, job):
            return nonsense

    xq = Xqute(workdir=tmp_path, plugins=[Nonsense()])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert "nonsensical" in caplog.text
    assert "on_job_submitting" in caplog.text


@pytest.mark.parametrize("hook", ["on_jobcmd_init", "on_jobcmd_prep", "on_jobcmd_end"])
@pytest.mark.parametrize("nonsense", [42, b"echo bytes", ["echo list"], True])
async def test_nonsense_from_a_jobcmd_hook_is_told_and_ignored(tmp_path, hook, nonsense, caplog):
    def implementation(self, scheduler, job):
        return nonsense

    implementation.__name__ = hook
    bad = type("Bad", (), {"name": "nonsensical", hook: plugin.impl(implementation)})()
    xq = Xqute(workdir=tmp_path, plugins=[bad])
    job = await xq.put("echo hi")
    await xq.run_until_complete()
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "hi\n")
    assert "nonsensical" in caplog.text
    assert hook in caplog.text


async def test_an_empty_or_missing_answer_of_a_jobcmd_hook_is_no_nonsense(tmp_path, caplog):
    class Quiet:
        name = "quiet"

        @plugin.impl
        def on_jobcmd_init(self, scheduler, job):
            return ""

        @plugin.impl
        def on_jobcmd_end(self, scheduler, job):
            return None

    xq = Xqute(workdir=tmp_path, plugins=[Quiet()])
    job = await xq.put("echo hi")
    await xq.run_until_complete()
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "hi\n")
    assert "quiet" not in caplog.text


async def test_a_plugin_that_makes_a_command_nonsense_fails_only_that_job(tmp_path):
    class Spoils:
        name = "spoils"

        @plugin.impl
        async def on_job_submitting(self, scheduler, job):
            if job.index == 1:
                job.cmd = ["echo", "a\0b"]

    xq = Xqute(workdir=tmp_path, plugins=[Spoils()])
    jobs = [await xq.put("true") for _ in range(3)]
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert [job.outcome for job in jobs] == [
        JobOutcome.SUCCEEDED,
        JobOutcome.SUBMIT_FAILED,
        JobOutcome.SUCCEEDED,
    ]
    assert "NUL" in jobs[1].reason


async def test_bash_that_is_no_bash_fails_the_job_and_tells_why(tmp_path):
    class Broken:
        name = "broken"

        @plugin.impl
        def on_jobcmd_prep(self, scheduler, job):
            return "echo (" if job.index == 0 else ""

    xq = Xqute(workdir=tmp_path, plugins=[Broken()])
    jobs = [await xq.put(["touch", tmp_path / f"ran{n}"]) for n in range(2)]
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert [job.outcome for job in jobs] == [JobOutcome.FAILED, JobOutcome.SUCCEEDED]
    assert "syntax error" in jobs[0].stderr_file.read_text()
    assert jobs[0].reason
    assert not (tmp_path / "ran0").exists()


async def test_a_status_that_a_plugin_cannot_set_is_told_and_ignored(tmp_path, caplog):
    class Confused:
        name = "confused"

        @plugin.impl
        async def on_job_started(self, scheduler, job):
            job.status = JobStatus.INIT

        @plugin.impl
        async def on_job_queued(self, scheduler, job):
            with pytest.raises(ValueError, match="77"):
                job.status = 77

    xq = Xqute(workdir=tmp_path, plugins=[Confused()])
    job = await xq.put("true")
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.SUCCEEDED
    assert "INIT" in caplog.text


async def test_a_hook_that_never_returns_is_given_up_at_the_second_stop(tmp_path, until):
    entered = []

    class Hangs:
        name = "hangs"

        @plugin.impl
        async def on_job_started(self, scheduler, job):
            entered.append(job)
            await asyncio.Event().wait()

    xq = Xqute(workdir=tmp_path, plugins=[Hangs()])
    job = await xq.put("true")
    await until(lambda: entered and job.rc_file.exists() and job.rc_file.read_text() == "0")
    xq.cancel()
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert (job.outcome, job.rc) == (JobOutcome.SUCCEEDED, 0)
