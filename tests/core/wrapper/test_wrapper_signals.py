"""Signals: the command sees them; the wrapper outlives them, and tells what became of it."""

from __future__ import annotations

import os
import random
import signal
import time

import pytest

WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"postscript": ":"}, {"timeout_s": 60}, {"timeout_s": 60, "prescript": ":"}],
    ids=["plain", "hooked", "timeout", "hooked-timeout"],
)
ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU]
TRAPPING = ["sh", "-c", 'trap "echo heard; exit 3" TERM; echo ready; while :; do sleep 0.01; done']


@WAYS
@pytest.mark.parametrize("number", ENDING)
def test_a_signal_to_the_group_ends_the_command_and_is_told(make_attempt, way, number):
    attempt = make_attempt(["sh", "-c", "echo ready; exec sleep 60"], **way).start()
    attempt.until_stdout(b"ready")
    attempt.signal(number)
    assert attempt.wait() == 128 + number
    assert attempt.end == (128 + number, 7, "TERMINATED")


@WAYS
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_a_warning_signal_is_the_commands_business_alone(make_attempt, way, number):
    attempt = make_attempt(["sh", "-c", "echo ready; exec sleep 60"], **way).start()
    attempt.until_stdout(b"ready")
    attempt.signal(number)
    attempt.wait()
    assert attempt.end == (128 + number, 7, "")


@WAYS
@pytest.mark.parametrize("rc", [0, 3])
def test_a_command_may_answer_term_with_an_exit_code_of_its_own(make_attempt, way, rc):
    command = [word.replace("exit 3", f"exit {rc}") for word in TRAPPING]
    attempt = make_attempt(command, **way).start()
    attempt.until_stdout(b"ready")
    attempt.signal(signal.SIGTERM)
    assert attempt.wait() == rc
    assert attempt.end == (rc, 7 if rc else 6, "TERMINATED")
    assert attempt.stdout == b"ready\nheard\n"


@WAYS
def test_term_to_the_wrapper_alone_is_noted_when_the_command_has_ended(make_attempt, probe, way):
    attempt = make_attempt([*probe, "keep", "5", "100"], **way).start()
    attempt.until_stdout(b"ready")
    os.kill(attempt.process.pid, signal.SIGTERM)
    assert attempt.wait() == 5
    assert attempt.end == (5, 7, "TERMINATED")


def test_a_kill_during_the_prescript_keeps_the_command_from_starting(make_attempt, tmp_path):
    attempt = make_attempt(
        ["touch", str(tmp_path / "ran")],
        prescript="sh -c 'echo ready; exec sleep 60'",
        jobcmd_end="echo end $rc",
    ).start()
    attempt.until_stdout(b"ready")
    attempt.signal(signal.SIGTERM)
    attempt.wait()
    assert attempt.end == (143, 7, "TERMINATED")
    assert attempt.stdout == b"ready\nend 143\n"
    assert not (tmp_path / "ran").exists()


def test_a_kill_during_the_postscript_does_not_change_the_rc(make_attempt):
    attempt = make_attempt(
        ["sh", "-c", "exit 5"],
        postscript="sh -c 'echo ready; exec sleep 60'",
        jobcmd_end="echo end $rc",
    ).start()
    attempt.until_stdout(b"ready")
    attempt.signal(signal.SIGTERM)
    attempt.wait()
    assert attempt.end == (5, 7, "TERMINATED")
    assert attempt.stdout == b"ready\nend 5\n"


@WAYS
def test_the_commands_own_death_is_told_as_it_is_when_the_wrapper_hears_nothing(make_attempt, way):
    attempt = make_attempt(["sh", "-c", "kill $$"], **way).run()
    assert attempt.end == (143, 7, "")


@pytest.mark.concurrency
@WAYS
@pytest.mark.parametrize("target", ["wrapper", "group"])
def test_no_rc_is_lost_in_a_storm_of_signals(make_attempt, probe, way, target):
    storm = [*ENDING, signal.SIGUSR1, signal.SIGUSR2]
    attempts = sent = 0
    # However few a busy machine lets through at a time.
    while attempts < 10 or sent < 50:
        attempts += 1
        code = random.randrange(1, 120)
        attempt = make_attempt([*probe, "keep", str(code), "20"], **way).start()
        attempt.until_stdout(b"ready")
        while not attempt.is_over(wait_s=random.uniform(0, 0.002)):
            number = random.choice(storm)
            if target == "group":
                attempt.signal(number)
            else:
                os.kill(attempt.process.pid, number)
            sent += 1
        assert attempt.wait() == code
        assert attempt.end[:2] == (code, 7)


@pytest.mark.concurrency
@WAYS
def test_a_kill_at_any_moment_leaves_no_command_and_no_lie(make_attempt, way):
    for _ in range(30):
        attempt = make_attempt(["sleep", "60"], **way).start()
        at_s = time.monotonic() + random.uniform(0, 0.008)
        while time.monotonic() < at_s:
            pass
        # In the instant in which bash makes the command's process, a signal may reach nobody.
        attempt.signal(signal.SIGTERM)
        while not attempt.is_over(wait_s=0.1):
            attempt.signal(signal.SIGTERM)
        ended = attempt.wait()
        assert (ended, attempt.end) in {
            (-15, None),  # before its traps were set, or its start was claimed
            (143, (143, 7, "TERMINATED")),
            (-9, (137, 7, "TERMINATED")),  # before there was anybody to tell the time limit's shell
        }
        assert (attempt.end is None) == (attempt.start_claim is None)


# --- time limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hooks", [{}, {"prescript": ":"}], ids=["plain", "hooked"])
def test_a_timeout_lets_the_command_clean_up(make_attempt, hooks):
    attempt = make_attempt(TRAPPING, timeout_s=0.3, grace_s=20, spool=True, **hooks).run()
    assert attempt.end == (3, 7, "TIMEOUT")
    assert attempt.exit_code == 3
    assert attempt.stdout == b"ready\nheard\n"
    assert attempt.events[-1][3:5] == (7, 3)


def test_a_timeout_is_one_also_when_the_command_answers_it_with_0(make_attempt):
    command = [word.replace("exit 3", "exit 0") for word in TRAPPING]
    attempt = make_attempt(command, timeout_s=0.3, grace_s=20).run()
    assert attempt.end == (0, 7, "TIMEOUT")


@pytest.mark.parametrize("hooks", [{}, {"prescript": ":"}], ids=["plain", "hooked"])
def test_a_command_that_ignores_term_is_killed_after_the_grace(make_attempt, is_alive, hooks):
    command = ["sh", "-c", "trap '' TERM; echo $$; while :; do sleep 1; done"]
    attempt = make_attempt(command, timeout_s=0.3, grace_s=0.2, spool=True, **hooks).run()
    assert attempt.end == (137, 7, "TIMEOUT")
    assert attempt.exit_code == -9  # it is in the group that it kills, after the end was told
    assert attempt.events[-1][3:5] == (7, 137)
    attempt.until(lambda: not is_alive(int(attempt.stdout)))


def test_a_wrapper_that_does_not_lead_its_group_ends_its_own_descendants_only(
    make_attempt, is_alive
):
    """As under a batch system that puts several things into one group."""
    attempt = make_attempt(
        ["sh", "-c", "trap '' TERM; echo $$; sleep 61 & echo $!; sleep 60; sleep 60"],
        timeout_s=0.3,
        grace_s=0.2,
    )
    attempt.start(bash=("/bin/sh", "-c", 'sleep 62 & /bin/bash -p "$0"; echo $? >"$0.rc"; wait'))
    attempt.until(lambda: attempt.read("job.wrapped.test.rc") == b"137\n")
    assert attempt.end == (137, 7, "TIMEOUT")
    for pid in map(int, attempt.stdout.split()):
        attempt.until(lambda pid=pid: not is_alive(pid))
    assert not attempt.is_over()


def test_a_timeout_in_a_hook_does_not_change_the_commands_rc(make_attempt):
    for rc in (0, 5):
        attempt = make_attempt(
            ["sh", "-c", f"exit {rc}"],
            postscript="trap '' TERM; sleep 60; sleep 60",
            timeout_s=0.3,
            grace_s=0.2,
        ).run()
        assert attempt.end == (rc, 7, "TIMEOUT")


def test_a_timeout_in_the_prescript_is_one(make_attempt, tmp_path):
    attempt = make_attempt(
        ["touch", str(tmp_path / "ran")], prescript="sleep 60", timeout_s=0.3, grace_s=20
    ).run()
    assert attempt.end == (143, 7, "TIMEOUT")
    assert not (tmp_path / "ran").exists()


def test_a_term_before_the_time_is_up_is_no_timeout(make_attempt):
    attempt = make_attempt(TRAPPING, timeout_s=60).start()
    attempt.until_stdout(b"ready")
    attempt.signal(signal.SIGTERM)
    attempt.wait()
    assert attempt.end == (3, 7, "TERMINATED")


def test_tmout_is_the_commands_variable_and_no_time_limit_of_the_wrapper(make_attempt, probe):
    attempt = make_attempt([*probe, "keep", "5", "1500"], timeout_s=60, env={"TMOUT": "1"})
    attempt.run(environ={**os.environ, "TMOUT": "1"})
    assert attempt.end == (5, 7, "")
