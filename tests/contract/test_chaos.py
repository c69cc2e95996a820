"""Drivers of the local scheduler are killed at random and at edges, and nothing comes of it."""

from __future__ import annotations

import sys

import pytest

from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract, bash, run_chaos


class Local(SchedulerContract):
    def make_scheduler(self, workdir, **keywords):
        return LocalScheduler(workdir, **keywords)


@pytest.mark.timeout(3600)
def test_chaos(tmp_path, seed, request, capsys):
    """A sample; `hatch run soak` runs the whole, with --kills=300."""
    kills = request.config.option.kills
    report = run_chaos(Local(), tmp_path, kills=kills, hits=max(1, kills // 60), seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    report.check()
    assert report.kills >= kills
    assert min(report.hits.values()) >= max(1, kills // 60)


# --- it sees what is wrong ---------------------------------------------------------------------


class RunsTwice(LocalScheduler):
    def wrap_job_script(self, job):
        return super().wrap_job_script(job).replace("if ! xq_claim", "if ! :")


class TellsNoFailure(LocalScheduler):
    def wrap_job_script(self, job):
        return super().wrap_job_script(job).replace("$xq_rc $status", "0 6")


class Broken(Local):
    scheduler_class = RunsTwice

    def make_scheduler(self, workdir, **keywords):
        return self.scheduler_class(workdir, **keywords)


def test_commands_that_run_twice_are_seen(tmp_path, seed):
    edges = ["after-sending", "after-answer"]
    report = run_chaos(Broken(), tmp_path, kills=0, hits=2, edges=edges, n_jobs=6, seed=seed)
    assert report.doubled
    with pytest.raises(AssertionError, match=f"chaos, seed {seed}: .* rounds"):
        report.check()


def test_ends_that_are_told_wrongly_are_seen(tmp_path, seed):
    contract = Broken()
    contract.scheduler_class = TellsNoFailure
    report = run_chaos(contract, tmp_path, kills=1, hits=0, n_jobs=24, runs_s=0.01, seed=seed)
    assert report.untrue
    assert not report.is_good


class LeavesSomething(Broken):
    """A contract that finds a process of ours after all."""

    scheduler_class = LocalScheduler

    def find_processes(self, word):
        return [4711]


def test_what_is_left_is_seen(tmp_path, seed, monkeypatch):
    monkeypatch.setattr("xqute.testing._chaos._GONE_WITHIN_S", 0.1)
    report = run_chaos(LeavesSomething(), tmp_path, kills=1, hits=0, n_jobs=2, seed=seed)
    assert report.left
    assert "4711" in str(report)


class SeesNoRun(Broken):
    """A contract by which a command has left nothing."""

    scheduler_class = LocalScheduler

    def read(self, job, name):
        return None if name == "chaos" else super().read(job, name)


def test_jobs_that_are_lost_are_seen(tmp_path, seed):
    report = run_chaos(SeesNoRun(), tmp_path, kills=1, hits=0, n_jobs=2, runs_s=0.01, seed=seed)
    assert len(report.lost) == 2 * report.n_rounds


def test_a_driver_that_cannot_run_is_told(tmp_path):
    from xqute.testing._driver import Driver

    with Driver(Local(), tmp_path, [bash("exit 0")], error_strategy="sometimes") as driver:
        assert driver.wait() == 1
    assert "error_strategy must be one of" in str(driver)
