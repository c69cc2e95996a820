"""`Scheduler`: its constructor, its attributes, and the jobs and scripts that it makes."""

from __future__ import annotations

import stat
import subprocess

import pytest

from xqute import Job, JobOutcome, Scheduler, SpecPath, Xqute, plugin
from xqute.defaults import DEFAULT_SUBMISSION_BATCH
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


class Inert(Scheduler):
    """As a third party writes it: three methods, and a keyword of its own."""

    name = "inert"
    __slots__ = (*Scheduler.__slots__, "extra")

    def __init__(self, *args, extra=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra

    async def submit_job(self, job):
        return 1

    async def kill_job(self, job):
        pass

    async def job_is_running(self, job):
        return False


# --- the constructor ----------------------------------------------------------------------------


def test_it_is_made_outside_a_loop_and_touches_nothing(tmp_path):
    scheduler = LocalScheduler(tmp_path / "w")
    assert not (tmp_path / "w").exists()
    assert scheduler.name == "local"


def test_the_defaults_are_those_documented(tmp_path):
    scheduler = Inert(tmp_path)
    assert (scheduler.forks, scheduler.error_strategy, scheduler.num_retries) == (1, "ignore", 3)
    assert (scheduler.prescript, scheduler.postscript) == ("", "")
    assert scheduler.jobname_prefix == "inert"
    assert scheduler.submission_batch == DEFAULT_SUBMISSION_BATCH
    assert (scheduler.cwd, scheduler.timeout, scheduler.resources) == (None, 0, None)
    assert scheduler.config == {}


def test_its_arguments_may_come_by_position(tmp_path):
    scheduler = Inert(tmp_path, 4, "retry", 2, "pre", "post", "prefix", 6, 3.5, "/", 9, {"cpus": 2})
    assert (scheduler.forks, scheduler.error_strategy, scheduler.num_retries) == (4, "retry", 2)
    assert (scheduler.prescript, scheduler.postscript) == ("pre", "post")
    assert (scheduler.jobname_prefix, scheduler.submission_batch) == ("prefix", 6)
    assert scheduler.subm_batch == 6
    assert (scheduler.recheck_interval, scheduler.cwd, scheduler.timeout) == (3.5, "/", 9)
    assert scheduler.resources == {"cpus": 2}


def test_config_is_a_mapping_of_the_remaining_keywords(tmp_path):
    scheduler = Inert(tmp_path, forks=2, extra=1, partition="short", mem="4G")
    assert dict(scheduler.config) == {"partition": "short", "mem": "4G"}
    assert scheduler.extra == 1
    scheduler.config["qos"] = "high"
    assert scheduler.config["qos"] == "high"


def test_mounted_workdir_is_taken_out_of_config(tmp_path):
    scheduler = Inert(tmp_path, mounted_workdir="/mnt/w", partition="short")
    assert dict(scheduler.config) == {"partition": "short"}
    assert str(scheduler.workdir.mounted) == "/mnt/w"
    assert scheduler.workdir == tmp_path


def test_workdir_is_a_specpath_whatever_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in ("w", "./w", str(tmp_path / "w"), tmp_path / "w", SpecPath(tmp_path / "w")):
        scheduler = Inert(given)
        assert isinstance(scheduler.workdir, SpecPath)
        assert scheduler.workdir == tmp_path / "w"


def test_workdir_may_be_assigned_after_construction(tmp_path):
    scheduler = Inert(tmp_path / "a")
    scheduler.workdir = str(tmp_path / "b")
    assert isinstance(scheduler.workdir, SpecPath)
    assert scheduler.create_job(0, "true").metadir == tmp_path / "b" / "0"
    assert not (tmp_path / "a").exists()


def test_slots_are_a_tuple_that_subclasses_extend(tmp_path):
    assert isinstance(Scheduler.__slots__, tuple)
    assert Inert(tmp_path, extra="x").extra == "x"


@pytest.mark.parametrize("missing", ["submit_job", "kill_job", "job_is_running"])
def test_the_three_methods_are_required(tmp_path, missing):
    methods = {
        name: getattr(Inert, name)
        for name in ("submit_job", "kill_job", "job_is_running")
        if name != missing
    }
    with pytest.raises(TypeError, match=missing):
        type("Lacking", (Scheduler,), {"name": "lacking", **methods})(tmp_path)


# --- jobs and their scripts ---------------------------------------------------------------------


def test_create_job_is_synchronous_and_makes_the_folder(tmp_path):
    job = Inert(tmp_path).create_job(4, ["echo", 1], {"A": 1})
    assert isinstance(job, Job)
    assert (job.index, job.cmd, job.envs) == (4, ("echo", "1"), {"A": "1"})
    assert job.metadir.is_dir()


def test_create_job_makes_jobs_of_the_job_class(tmp_path):
    class MyJob(Job):
        __slots__ = (*Job.__slots__, "proc")

    class Mine(Inert):
        job_class = MyJob

    assert type(Mine(tmp_path).create_job(0, "true")) is MyJob
    assert type(Inert(tmp_path).create_job(1, "true")) is Job


def test_wrapped_job_script_writes_the_script_and_gives_its_path(tmp_path):
    scheduler = Inert(tmp_path)
    job = scheduler.create_job(0, "echo hi")
    path = scheduler.wrapped_job_script(job)
    assert isinstance(path, SpecPath)
    assert path == job.metadir / "job.wrapped.inert"
    assert path.read_text() == scheduler.wrap_job_script(job)


def test_only_the_user_can_read_the_script_which_may_hold_secrets(tmp_path):
    scheduler = Inert(tmp_path)
    job = scheduler.create_job(0, "true", {"TOKEN": "secret"})
    path = scheduler.wrapped_job_script(job)
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_bash_runs_the_script_and_that_is_the_job(tmp_path):
    scheduler = Inert(tmp_path, prescript="echo pre", postscript="echo post")
    job = scheduler.create_job(0, ["bash", "-c", "echo $A; exit 3"], {"A": "it's"})
    assert isinstance(scheduler.wrap_job_script(job), str)
    subprocess.run(["bash", str(scheduler.wrapped_job_script(job))], check=False)
    assert job.stdout_file.read_text() == "pre\nit's\npost\n"
    assert job.rc == 3


def test_the_script_begins_with_the_shebang(tmp_path):
    class Mine(Inert):
        def jobcmd_shebang(self, job):
            return f"#!/bin/bash\n#MINE -N {job.index}"

    scheduler = Mine(tmp_path)
    script = scheduler.wrap_job_script(scheduler.create_job(7, "true"))
    assert script.splitlines()[:2] == ["#!/bin/bash", "#MINE -N 7"]


async def test_a_scheduler_may_override_what_goes_into_the_script(tmp_path):
    class Mine(LocalScheduler):
        name = "mine"

        @property
        def jobcmd_wrapper_init(self):
            return "XQ_MINE=init\n"

        def jobcmd_init(self, job):
            return f"echo init-$XQ_MINE\n{super().jobcmd_init(job)}"

        def jobcmd_prep(self, job):
            return f'echo "prep"\n{super().jobcmd_prep(job)}'

        def jobcmd_end(self, job):
            return f"{super().jobcmd_end(job)}\necho end-$rc"

    class Inserts:
        name = "inserts"

        @plugin.impl
        def on_jobcmd_prep(self, scheduler, job):
            return "echo plugin-prep"

        @plugin.impl
        def on_jobcmd_end(self, scheduler, job):
            return "echo plugin-end"

    xq = Xqute(Mine, workdir=tmp_path, plugins=[Inserts()])
    job = await xq.put(["bash", "-c", "echo cmd; exit 3"])
    await xq.run_until_complete()
    assert job.stdout_file.read_text().split() == [
        "init-init",
        "prep",
        "plugin-prep",
        "cmd",
        "plugin-end",
        "end-3",
    ]
    assert job.rc == 3


async def test_the_jobs_see_the_documented_environment(tmp_path):
    xq = Xqute(workdir=tmp_path)
    names = ("XQUTE_JOB_INDEX", "XQUTE_METADIR", "XQUTE_JOB_METADIR", "XQUTE_JOB_TRIAL")
    job = await xq.put(["bash", "-c", f"printf '%s\\n' {' '.join(f'${n}' for n in names)}"])
    await xq.run_until_complete()
    index, metadir, job_metadir, trial = job.stdout_file.read_text().splitlines()
    assert (index, trial) == ("0", "0")
    assert job_metadir == str(tmp_path / "0")
    assert metadir in (str(tmp_path), str(tmp_path / "0"))


async def test_the_jobs_see_mounted_paths(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "mounted").symlink_to("real")
    xq = Xqute(workdir=tmp_path / "real", scheduler_opts={"mounted_workdir": tmp_path / "mounted"})
    job = await xq.put(["bash", "-c", "echo $XQUTE_JOB_METADIR"])
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert job.stdout_file.read_text().strip() == str(tmp_path / "mounted" / "0")
