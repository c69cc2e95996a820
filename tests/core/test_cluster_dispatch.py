"""The script of an array: each task runs the wrapper of its own job, and none of a revoked one."""

from __future__ import annotations

import subprocess

import pytest

from xqute.cluster.arrays import render_dispatch

FOLDERS = ["9", "-", "10", "123456", "7"]


@pytest.fixture
def run(tmp_path):
    """Run the script as one task; give its exit code and what it says."""
    for folder in FOLDERS:
        if folder != "-":
            (tmp_path / folder).mkdir()
            wrapper = 'echo "$xq_dir $$ ${1-none}"; exit 7\n'
            (tmp_path / folder / "job.wrapped.x").write_text(wrapper)

    def run(task, **keywords):
        script = tmp_path / "script"
        script.write_text(
            render_dispatch(
                head="#!/bin/bash -p",
                workdir=str(tmp_path),
                folders=FOLDERS,
                tag="run-0",
                wrapper_name="job.wrapped.x",
                place="TASK-1",
                **keywords,
            )
        )
        env = {"TASK": str(task + 1), "PATH": "/usr/bin:/bin"}
        process = subprocess.Popen(
            ["/bin/bash", "-p", script], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, _ = process.communicate(timeout=30)
        return process.returncode, out.decode(), process.pid

    return run


@pytest.mark.parametrize("task", [0, 2, 3, 4])
def test_a_task_runs_the_wrapper_of_the_job_at_its_place(run, tmp_path, task):
    rc, out, pid = run(task)
    assert (rc, out) == (7, f"{tmp_path}/{FOLDERS[task]} {pid} none\n"), "in the same process"


def test_a_wrapper_that_may_start_again_is_told_for_which_attempt(run):
    rc, out, _ = run(0, restarted="RESTARTS")
    assert (rc, out.split()[2]) == (7, "run-0")


def test_a_wrapper_has_a_process_of_its_own_where_signals_are_passed_on(run):
    rc, out, pid = run(3, forward="USR1")
    assert rc == 7
    assert out.split()[-2] != str(pid)


def test_a_place_without_a_wrapper_fails_and_runs_nothing(run):
    rc, out, _ = run(1)
    assert (rc != 0, out) == (True, "")


def test_an_attempt_that_was_begun_or_revoked_is_not_begun(run, tmp_path):
    (tmp_path / "10" / "job.start.run-0").touch()
    assert run(2)[:2] == (121, "")
