"""Attempts that their backend may start again: who begins, and whose end is whose."""

from __future__ import annotations

import subprocess

import pytest

from xqute import Scheduler
from xqute.job import Job
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import bash


class Restarting(LocalScheduler):
    """Its backend starts attempts again, and says how often it has in RESTARTS."""

    may_restarts = True
    jobcmd_wrapper_init = "xq_restart=${RESTARTS:-0}"

    def may_restart(self, job: Job) -> bool:
        return self.may_restarts


@pytest.fixture
def attempt(tmp_path):
    """The script of an attempt: it says which start it is, and ends with 3 and that."""
    scheduler: Scheduler = Restarting(tmp_path)
    job = scheduler.create_job(0, bash('echo "$RESTARTS"; exit "$((3 + RESTARTS))"'))
    script = scheduler.wrapped_job_script(job)
    tag = scheduler.claim_tag(job)

    class Attempt:
        def start(self, restarts, *args):
            argv = ["bash", "-p", str(script), *args]
            env = {"PATH": "/usr/bin:/bin", "RESTARTS": str(restarts)}
            done = subprocess.run(argv, env=env, check=False, capture_output=True)
            return done.returncode

        def claims(self):
            return sorted(
                path.name.removeprefix("job.").replace(tag, "T")
                for path in job.metadir.glob("job.*")
                if path.name.startswith(("job.start.", "job.end."))
            )

        def claim(self, name, text):
            (job.metadir / f"job.{name}.{tag}").write_text(text)

    made = Attempt()
    made.job, made.tag = job, tag
    return made


def test_each_start_has_its_own_claim_and_its_own_end(attempt):
    assert [attempt.start(0), attempt.start(1), attempt.start(2)] == [3, 4, 5]
    ends = ["end.T.0", "end.T.1", "end.T.2"]
    assert attempt.claims() == [*ends, "start.T", "start.T.1", "start.T.2"]
    assert (attempt.job.metadir / f"job.end.{attempt.tag}.1").read_text() == "4 7 \n"
    assert attempt.job.stdout_file.read_text() == "2\n"


def test_the_first_start_is_begun_once(attempt):
    assert [attempt.start(0), attempt.start(0)] == [3, 121]
    assert attempt.claims() == ["end.T.0", "start.T"]


def test_a_start_before_which_none_has_begun_is_the_first(attempt):
    assert attempt.start(2) == 5
    assert attempt.claims() == ["end.T.0", "start.T"]


@pytest.mark.parametrize("text", ["revoked driver\n", ""])
def test_an_attempt_that_was_revoked_is_not_started_again(attempt, text):
    attempt.claim("start", text)
    assert [attempt.start(0), attempt.start(1)] == [121, 121]
    assert attempt.claims() == ["start.T"]


def test_an_attempt_that_has_an_end_is_not_started_again(attempt):
    attempt.start(0)
    attempt.claim("end", "3 7 \n")
    assert attempt.start(1) == 121
    assert not attempt.job.stdout_file.read_text().strip("0\n")


def test_the_script_of_another_attempt_is_not_begun(attempt):
    assert attempt.start(1, "another") == 121
    assert attempt.claims() == []
    assert attempt.start(1, attempt.tag) == 4


def test_the_claims_of_an_attempt_that_may_be_started_again_stay(attempt):
    attempt.start(0)
    attempt.claim("end", "3 7 \n")
    attempt.claim("restarts", "")
    attempt.job.clean()
    assert attempt.claims() == ["end.T", "end.T.0", "start.T"]


def test_without_that_a_second_start_is_none(attempt, tmp_path, monkeypatch):
    monkeypatch.setattr(Restarting, "may_restarts", False)
    scheduler = Restarting(tmp_path)
    scheduler.wrapped_job_script(attempt.job)
    attempt.start(0)
    assert attempt.start(1) == 121
