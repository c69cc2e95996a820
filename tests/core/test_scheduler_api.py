"""`Scheduler`: its constructor, its attributes, jobs and scripts made by it, changes after construction."""

from __future__ import annotations

import os
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
    xq = Xqute(
        workdir=tmp_path / "real", scheduler_opts={"mounted_workdir": tmp_path / "mounted"}
    )
    job = await xq.put(["bash", "-c", "echo $XQUTE_JOB_METADIR"])
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED
    assert job.stdout_file.read_text().strip() == str(tmp_path / "mounted" / "0")


# --- cwd, timeout, scripts ----------------------------------------------------------------------


async def test_cwd_of_the_scheduler_and_of_a_job(tmp_path):
    (tmp_path / "a b").mkdir()
    xq = Xqute(workdir=tmp_path / "w", scheduler_opts={"cwd": tmp_path / "a b"})
    jobs = [await xq.put("pwd"), await xq.feed("pwd", cwd="/")]
    await xq.run_until_complete()
    assert [job.stdout_file.read_text().rstrip("\n") for job in jobs] == [f"{tmp_path}/a b", "/"]


async def test_without_cwd_jobs_run_where_the_driver_is(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("pwd -P")
    await xq.run_until_complete()
    assert job.stdout_file.read_text().rstrip("\n") == os.getcwd()


async def test_the_timeout_of_the_scheduler_and_of_a_job(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=3, scheduler_opts={"timeout": 0.2})
    late = await xq.put("sleep 60")
    free = await xq.feed("sleep 0.4", timeout=0)
    longer = await xq.feed("sleep 0.4", timeout=30)
    await xq.run_until_complete()
    assert (late.outcome, late.cause) == (JobOutcome.TIMEOUT, "TIMEOUT")
    assert late.rc == 143
    assert (free.outcome, longer.outcome) == (JobOutcome.SUCCEEDED, JobOutcome.SUCCEEDED)


async def test_an_exit_in_prescript_fails_the_job_with_that_code(tmp_path):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"prescript": "exit 9"})
    job = await xq.put("echo ran")
    await xq.run_until_complete()
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 9)
    assert job.stdout_file.read_text() == ""


async def test_postscript_runs_after_the_command_and_cannot_change_its_exit_code(tmp_path):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"postscript": "echo post; exit 0"})
    job = await xq.put(["bash", "-c", "echo cmd; exit 6"])
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "cmd\npost\n"
    assert (job.rc, job.outcome) == (6, JobOutcome.FAILED)


# --- changed after construction -----------------------------------------------------------------


async def test_what_is_changed_on_the_scheduler_is_read_at_submission(tmp_path):
    xq = Xqute(workdir=tmp_path / "a")
    scheduler = xq.scheduler
    scheduler.workdir = tmp_path / "b"
    scheduler.forks = 2
    scheduler.prescript = "echo pre"
    scheduler.postscript = "echo post"
    scheduler.cwd = "/"
    scheduler.timeout = 50
    job = await xq.put("pwd")
    await xq.run_until_complete()
    assert job.metadir == tmp_path / "b" / "0"
    assert job.stdout_file.read_text() == "pre\n/\npost\n"
    assert not (tmp_path / "a").exists()


async def test_a_change_between_two_submissions_counts_for_the_second(tmp_path):
    xq = Xqute(workdir=tmp_path)
    first = await xq.put("true")
    await first.wait()
    xq.scheduler.prescript = "echo changed"
    second = await xq.put("true")
    await xq.run_until_complete()
    assert (first.stdout_file.read_text(), second.stdout_file.read_text()) == ("", "changed\n")


async def test_forks_may_be_raised_while_jobs_run(tmp_path, gate, until):
    xq = Xqute(workdir=tmp_path)
    jobs = [await xq.put(gate.command()) for _ in range(4)]
    await until(lambda: jobs[0].status == 4)
    assert jobs[1].status == 2
    xq.scheduler.forks = 4
    extra = await xq.put("true")
    await until(lambda: [job.status for job in jobs] == [4] * 4)
    gate.open()
    await xq.run_until_complete()
    assert {job.outcome for job in [*jobs, extra]} == {JobOutcome.SUCCEEDED}


async def test_config_changed_after_construction_is_what_submission_sees(tmp_path):
    class Configured(LocalScheduler):
        name = "configured"

        def __init__(self, *args, image=None, **kwargs):
            super().__init__(*args, **kwargs)
            self.config["image"] = image

        def jobcmd_init(self, job):
            return f"echo {self.config['image']}"

    xq = Xqute(Configured, workdir=tmp_path, scheduler_opts={"image": "old"})
    xq.scheduler.config["image"] = "new"
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "new\n"


async def test_forks_bounds_the_jobs_with_the_backend(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=3)
    command = ["bash", "-c", f"echo + >>{tmp_path}/log; sleep 0.05; echo - >>{tmp_path}/log"]
    for _ in range(10):
        await xq.put(command)
    await xq.run_until_complete()
    level, levels = 0, []
    for sign in (tmp_path / "log").read_text().split():
        level += 1 if sign == "+" else -1
        levels.append(level)
    assert (max(levels), levels[-1]) == (3, 0)
