"""Hooks: which come when, forms of plugins, priorities, names, plugins that raise or talk nonsense."""

from __future__ import annotations

import asyncio
import sys
import types
import warnings

import pytest
import simplug

from xqute import JobOutcome, JobStatus, Xqute, plugin

pytestmark = pytest.mark.usefixtures("job_processes")


def _module(name, source):
    module = types.ModuleType(name)
    exec(source, module.__dict__)
    return module


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


async def test_on_job_started_comes_once_per_attempt_and_before_the_terminal_hook(
    tmp_path, recorder
):
    xq = Xqute(
        workdir=tmp_path, plugins=[recorder], forks=4, error_strategy="retry", num_retries=2
    )
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
            return f"echo prep {job.index}; cmd=\"{{ $cmd; echo also; exit 5; }}\""

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


# --- forms of plugins ---------------------------------------------------------------------------

SOURCE = """
from xqute import plugin
seen = []
@plugin.impl
async def on_job_succeeded(scheduler, job):
    seen.append(job.index)
@plugin.impl
def on_init(xqute):
    seen.append("init")
"""


async def test_a_module_is_a_plugin(tmp_path):
    module = _module("a_plugin_module", SOURCE)
    xq = Xqute(workdir=tmp_path, plugins=[module])
    await xq.put("true")
    await xq.run_until_complete()
    assert module.seen == ["init", 0]


async def test_a_class_without_self_is_a_plugin(tmp_path):
    seen = []

    class Static:
        @plugin.impl
        async def on_job_succeeded(scheduler, job):
            seen.append(job.index)

    xq = Xqute(workdir=tmp_path, plugins=[Static])
    await xq.put("true")
    await xq.run_until_complete()
    assert seen == [0]


@pytest.mark.filterwarnings("ignore::simplug.ImplMightNeedInstanceWarning")
async def test_a_class_with_self_is_made_one_instance_of_per_run(tmp_path):
    instances = []

    class Counting:
        def __init__(self):
            instances.append(self)
            self.seen = []

        @plugin.impl
        async def on_job_started(self, scheduler, job):
            self.seen.append(("started", job.index))

        @plugin.impl
        async def on_job_succeeded(self, scheduler, job):
            self.seen.append(("succeeded", job.index))

    xq = Xqute(workdir=tmp_path, plugins=[Counting])
    await xq.put("true")
    await xq.run_until_complete()
    assert [instance.seen for instance in instances] == [[("started", 0), ("succeeded", 0)]]


async def test_an_instance_is_a_plugin_and_keeps_its_state(tmp_path, recorder):
    for n in range(2):
        xq = Xqute(workdir=tmp_path / str(n), plugins=[recorder])
        await xq.put("true")
        await xq.run_until_complete()
    assert recorder.hooks().count("succeeded") == 2


@pytest.mark.filterwarnings("ignore::simplug.SyncImplOnAsyncSpecWarning")
async def test_synchronous_implementations_of_asynchronous_hooks_work(tmp_path):
    seen = []

    class Sync:
        name = "sync"

        @plugin.impl
        def on_job_init(self, scheduler, job):
            seen.append("init")

        @plugin.impl
        def on_job_submitting(self, scheduler, job):
            seen.append("submitting")
            return job.index != 1

        @plugin.impl
        def on_job_succeeded(self, scheduler, job):
            seen.append("succeeded")

    xq = Xqute(workdir=tmp_path, plugins=[Sync()])
    jobs = [await xq.put("true"), await xq.put("true")]
    await xq.run_until_complete()
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED, JobOutcome.CANCELLED]
    assert sorted(seen) == ["init"] * 2 + ["submitting"] * 2 + ["succeeded"]


@pytest.mark.parametrize("form", ["method", "module", "static"])
@pytest.mark.parametrize("kind", ["async def", "def"])
async def test_on_job_polling_with_two_parameters_is_accepted(tmp_path, form, kind, gate, until):
    self_ = "self, " if form == "method" else ""
    functions = f"""
from xqute import plugin
seen = []
@plugin.impl
{kind} on_job_polling({self_}scheduler, job):
    seen.append(job.index)
"""
    module = _module("polling_module", functions)
    given = module
    if form != "module":
        given = type("Poller", (), {"on_job_polling": module.on_job_polling})
        given = given() if form == "method" else given
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", simplug.SyncImplOnAsyncSpecWarning)
        xq = Xqute(workdir=tmp_path, plugins=[given])
    await xq.put(gate.command())
    await until(lambda: module.seen)
    gate.open()
    await xq.run_until_complete()
    assert set(module.seen) == {0}


async def test_a_registered_plugin_is_enabled_everywhere(tmp_path, recorder):
    plugin.register(recorder)
    try:
        xq = Xqute(workdir=tmp_path)
        await xq.put("true")
        await xq.run_until_complete()
    finally:
        plugin.hooks._registry.pop(recorder.name)
    assert recorder.hooks()[-1] == "succeeded"


def test_a_wrong_signature_is_refused_when_it_is_registered():
    class Wrong:
        name = "wrong"

        @plugin.impl
        async def on_job_started(self, job):
            pass

    with pytest.raises(simplug.HookSignatureDifferentFromSpec, match="on_job_started"):
        plugin.register(Wrong())


def test_a_hook_that_does_not_exist_is_refused():
    with pytest.raises(simplug.NoSuchHookSpec, match="on_job_begun"):

        @plugin.impl
        async def on_job_begun(scheduler, job):
            pass


def test_the_project_is_the_simplug_project_xqute():
    assert plugin.project == "xqute"
    assert sys.modules["xqute.plugin"].plugin is simplug.Simplug("xqute")


# --- names --------------------------------------------------------------------------------------


@pytest.fixture
def two_registered(make_recorder):
    recorders = {name: make_recorder(name) for name in ("one", "two")}
    plugin.register(*recorders.values())
    yield recorders
    for name in recorders:
        plugin.hooks._registry.pop(name)


@pytest.mark.parametrize(
    ("plugins", "enabled"),
    [
        (None, {"one", "two"}),
        (["-one"], {"two"}),
        (["+one"], {"one", "two"}),
        (["-one", "+two"], {"two"}),
        (["one"], {"one"}),
        (["one", "two"], {"one", "two"}),
        ([], set()),
    ],
)
async def test_names_enable_and_disable_plugins(tmp_path, two_registered, plugins, enabled):
    xq = Xqute(workdir=tmp_path, plugins=plugins)
    await xq.put("true")
    await xq.run_until_complete()
    assert {name for name, recorder in two_registered.items() if recorder.calls} == enabled


async def test_an_unknown_name_raises_simplugs_no_such_plugin(tmp_path, two_registered):
    for plugins in (["+a"], ["a"], ["-one", "+a"]):
        with pytest.raises(simplug.NoSuchPlugin, match="a"):
            Xqute(workdir=tmp_path, plugins=plugins)
    assert plugin.get_enabled_plugin_names() == ["one", "two"]


async def test_names_with_and_without_a_sign_do_not_mix(tmp_path, two_registered):
    with pytest.raises(simplug.SimplugException):
        Xqute(workdir=tmp_path, plugins=["one", "-two"])


async def test_two_runs_at_once_have_their_own_plugins(tmp_path, make_recorder):
    one, two = make_recorder("one"), make_recorder("two")
    first = Xqute(workdir=tmp_path / "1", plugins=[one])
    second = Xqute(workdir=tmp_path / "2", plugins=[two])
    for _ in range(5):
        await first.put("true")
        await second.put("false")
    await asyncio.gather(first.run_until_complete(), second.run_until_complete())
    assert (one.inits, two.inits) == ([first], [second])
    assert (one.hooks().count("succeeded"), one.hooks().count("failed")) == (5, 0)
    assert (two.hooks().count("succeeded"), two.hooks().count("failed")) == (0, 5)


async def test_plugins_of_an_earlier_run_are_not_those_of_the_next(tmp_path, recorder):
    for plugins in ([recorder], None):
        xq = Xqute(workdir=tmp_path, plugins=plugins)
        await xq.put("true")
        await xq.run_until_complete()
    assert recorder.hooks().count("succeeded") == 1
    assert recorder.name not in plugin.get_all_plugin_names()
