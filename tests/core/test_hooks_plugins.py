"""Forms of plugins, their registration, and which are enabled in a run."""

from __future__ import annotations

import asyncio
import itertools
import sys
import types

import pytest
import simplug

from xqute import JobOutcome, Xqute, plugin

pytestmark = pytest.mark.usefixtures("job_processes")


def _module(name, source):
    module = types.ModuleType(name)
    exec(source, module.__dict__)
    return module


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


async def test_the_name_of_a_module_can_be_registered(tmp_path, monkeypatch):
    (tmp_path / "xqute_named_for_tests.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    plugin.register("xqute_named_for_tests")
    try:
        xq = Xqute(workdir=tmp_path / "w")
        await xq.put("true")
        await xq.run_until_complete()
    finally:
        plugin.hooks._registry.pop("xqute_named_for_tests")
    assert sys.modules.pop("xqute_named_for_tests").seen == ["init", 0]


async def test_a_class_without_self_is_a_plugin(tmp_path):
    seen = []

    class Static:
        @plugin.impl
        async def on_job_succeeded(scheduler, job):  # noqa: N805  # as existing plugins are written
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


@pytest.mark.filterwarnings("ignore::simplug.SyncImplOnAsyncSpecWarning")
async def test_on_job_polling_with_two_parameters_is_accepted_in_every_form(tmp_path, gate, until):
    seen, plugins = set(), []
    for form, kind in itertools.product(["method", "module", "static"], ["async def", "def"]):
        source = f"""
from xqute import plugin
@plugin.impl
{kind} on_job_polling({"self, " if form == "method" else ""}scheduler, job):
    seen.add(("{form}", "{kind}", scheduler.name, job.index))
"""
        name = f"{form}_{kind}".replace(" ", "_")
        given = _module(name, source)
        given.seen = seen
        if form != "module":
            given = type(name, (), {"on_job_polling": given.on_job_polling})
        plugins.append(given() if form == "method" else given)
    xq = Xqute(workdir=tmp_path, plugins=plugins)
    await xq.put(gate.command())
    await until(lambda: len(seen) == 6)
    gate.open()
    await xq.run_until_complete()
    assert {call[2:] for call in seen} == {("local", 0)}


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
