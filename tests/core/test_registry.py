"""Finding schedulers: names, classes, entry points of other distributions, and helpful refusals."""

from __future__ import annotations

import importlib
import sys

import pytest

import xqute
from xqute import Scheduler, SchedulerNotFoundError, XquteError
from xqute.schedulers import get_scheduler
from xqute.schedulers.local_scheduler import LocalScheduler

MODULE = '''
"""A backend of somebody else."""
from xqute import Scheduler

__all__ = ["PbsOptions", "PbsScheduler"]

class PbsOptions:
    pass

class PbsScheduler(Scheduler):
    name = "pbs"
    async def submit_job(self, job): ...
    async def kill_job(self, job): ...
    async def job_is_running(self, job): ...

class OldScheduler(PbsScheduler):
    name = "old"
    core_api_version = 1

class FutureScheduler(PbsScheduler):
    name = "future"
    core_api_version = 99

class NotAScheduler:
    pass

def function(): ...

_hidden = 1
'''

ENTRY_POINTS = """
[xqute.schedulers]
pbs = xqute_pbs_for_tests:PbsScheduler
old = xqute_pbs_for_tests:OldScheduler
future = xqute_pbs_for_tests:FutureScheduler
notone = xqute_pbs_for_tests:NotAScheduler
function = xqute_pbs_for_tests:function
missing = xqute_pbs_for_tests:Missing
nomodule = xqute_no_such_module:Scheduler
explodes = xqute_explodes_for_tests:Scheduler
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution with schedulers, as pip would have installed it."""
    site = tmp_path / "site"
    info = site / "xqute_pbs_for_tests-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: xqute-pbs-for-tests\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (site / "xqute_pbs_for_tests.py").write_text(MODULE)
    (site / "xqute_explodes_for_tests.py").write_text("raise RuntimeError('no licence server')")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield site
    for name in list(sys.modules):
        if "_for_tests" in name or (name.startswith("xqute.schedulers.") and "local" not in name):
            del sys.modules[name]


# --- what is found ------------------------------------------------------------------------------


def test_local_is_registered_like_any_other():
    assert get_scheduler("local") is LocalScheduler


def test_a_class_is_given_back(installed):
    assert get_scheduler(LocalScheduler) is LocalScheduler


def test_a_scheduler_of_another_distribution_is_found_by_its_entry_point(installed):
    assert "xqute_pbs_for_tests" not in sys.modules
    found = get_scheduler("pbs")
    assert found.__module__ == "xqute_pbs_for_tests"
    assert issubclass(found, Scheduler)


def test_others_are_not_imported_meanwhile(installed):
    get_scheduler("local")
    assert "xqute_pbs_for_tests" not in sys.modules


def test_the_declared_core_api_version_is_accepted(installed):
    assert get_scheduler("old").core_api_version == 1


async def test_xqute_finds_it_by_name_too(installed, tmp_path):
    xq = xqute.Xqute("pbs", workdir=tmp_path / "w")
    assert xq.scheduler.name == "pbs"


# --- the modules that existing code imports -----------------------------------------------------


def test_the_local_scheduler_has_its_module():
    from xqute.schedulers import local_scheduler

    assert local_scheduler.LocalScheduler is LocalScheduler


def test_every_registered_backend_has_a_module_with_its_public_names(installed):
    from xqute.schedulers.pbs_scheduler import PbsOptions, PbsScheduler

    module = sys.modules["xqute.schedulers.pbs_scheduler"]
    assert PbsScheduler is get_scheduler("pbs")
    assert PbsOptions.__module__ == "xqute_pbs_for_tests"
    assert not hasattr(module, "_hidden")


def test_importlib_and_plain_import_find_it_too(installed):
    assert importlib.import_module("xqute.schedulers.pbs_scheduler").PbsScheduler
    import xqute.schedulers.pbs_scheduler

    assert xqute.schedulers.pbs_scheduler.PbsScheduler


def test_a_backend_that_is_not_registered_has_no_module():
    with pytest.raises(ModuleNotFoundError, match="nosuch_scheduler"):
        importlib.import_module("xqute.schedulers.nosuch_scheduler")


# --- refusals -----------------------------------------------------------------------------------


def test_an_unknown_name_lists_what_is_installed(installed):
    with pytest.raises(XquteError) as caught:
        get_scheduler("nosuch")
    assert isinstance(caught.value, SchedulerNotFoundError)
    text = str(caught.value)
    assert "nosuch" in text
    assert "local" in text
    assert "pbs" in text


@pytest.mark.parametrize("name", ["slurm", "sge", "ssh", "container", "gbatch"])
def test_an_official_one_that_is_not_installed_comes_with_its_pip_line(name, monkeypatch):
    monkeypatch.setattr("xqute.schedulers.entry_points", lambda group: ())
    with pytest.raises(SchedulerNotFoundError, match=f"pip install xqute-{name}"):
        get_scheduler(name)


@pytest.mark.parametrize(
    ("typo", "meant"), [("locl", "local"), ("pbss", "pbs"), ("slrum", "slurm")]
)
def test_a_typo_gets_a_suggestion(installed, typo, meant):
    with pytest.raises(SchedulerNotFoundError, match=f"(?s){typo}.*[Dd]id you mean.*{meant}"):
        get_scheduler(typo)


async def test_xqute_refuses_an_unknown_scheduler_when_it_is_made(tmp_path):
    with pytest.raises(SchedulerNotFoundError, match="nosuch"):
        xqute.Xqute("nosuch", workdir=tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_a_scheduler_for_another_core_says_which(installed):
    with pytest.raises(XquteError, match=r"(?s)FutureScheduler.*99.*1"):
        get_scheduler("future")


@pytest.mark.parametrize("name", ["notone", "function"])
def test_an_entry_point_that_is_no_scheduler_is_named(installed, name):
    with pytest.raises(XquteError, match=r"(?s)xqute_pbs_for_tests.*Scheduler"):
        get_scheduler(name)


@pytest.mark.parametrize("thing", [int, object(), None, 3, LocalScheduler.submit_job])
def test_what_is_no_scheduler_is_refused_as_such(thing):
    with pytest.raises(XquteError, match="Scheduler"):
        get_scheduler(thing)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "Missing"),
        ("nomodule", "xqute_no_such_module"),
        ("explodes", "no licence server"),
    ],
)
def test_one_that_cannot_be_imported_says_why(installed, name, why):
    with pytest.raises(SchedulerNotFoundError, match=f"(?s){name}.*{why}") as caught:
        get_scheduler(name)
    assert caught.value.__cause__ is not None


def test_an_error_while_importing_harms_no_other(installed):
    with pytest.raises(SchedulerNotFoundError):
        get_scheduler("explodes")
    assert get_scheduler("local") is LocalScheduler
    assert get_scheduler("pbs").name == "pbs"


def test_a_class_that_lacks_a_name_is_refused_by_name(tmp_path):
    class Nameless(Scheduler):
        async def submit_job(self, job): ...
        async def kill_job(self, job): ...
        async def job_is_running(self, job): ...

    with pytest.raises((XquteError, TypeError), match="Nameless"):
        get_scheduler(Nameless)(tmp_path)


# --- plugins of other distributions -------------------------------------------------------------

PLUGIN = """
from xqute import plugin
seen = []
@plugin.impl
def on_init(xqute):
    seen.append(xqute)
"""


def test_plugins_of_entry_points_load_at_the_first_use_and_not_at_import(tmp_path, start_driver):
    info = tmp_path / "xqute_plug_for_tests-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: xqute-plug-for-tests\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text(
        "[xqute]\nplugged = xqute_plug_for_tests\nbroken = xqute_broken_for_tests\n"
    )
    (tmp_path / "xqute_plug_for_tests.py").write_text(PLUGIN)
    (tmp_path / "xqute_broken_for_tests.py").write_text("raise RuntimeError('no database')")
    driver = start_driver(
        """
        import json, sys
        import xqute, xqute.plugin, xqute.schedulers
        early = "xqute_plug_for_tests" in sys.modules
        jobs = xqute.run(["true"], workdir="w")
        xqute.run(["true"], workdir="w2")
        xqute.run(["true"], workdir="w3", plugins=["-plugged"])
        seen = len(sys.modules["xqute_plug_for_tests"].seen)
        print(json.dumps([early, seen, jobs[0].rc]))
        """
    )
    assert driver.finish() == [False, 2, 0]
    assert "broken" in driver.stderr
    assert "no database" in driver.stderr
