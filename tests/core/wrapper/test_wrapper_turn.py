"""A wrapper that is started before its turn does nothing until it has come."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest


@pytest.fixture
def early(make_attempt):
    """An attempt whose wrapper awaits its turn; that it is ready for it is seen in /proc."""
    attempt = make_attempt(["cat"], spool=True)
    attempt.start("await-turn", stdin=subprocess.PIPE, bufsize=0)
    reads_stdin = f"{_read_syscall()} 0x0 "
    attempt.until(lambda: _now(attempt.process.pid).startswith(reads_stdin))
    yield attempt
    attempt.process.stdin.close()


def _now(pid):
    with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
        return file.read()


def _read_syscall():
    """The number of read(), as this process is seen to be in it."""
    with open("/proc/self/syscall", encoding="ascii") as file:
        return file.read().split()[0]


def test_nothing_happens_before_its_turn(early):
    assert sorted(os.listdir(early.folder)) == ["job.wrapped.test", "spool"]
    assert early.events == []


def test_its_turn_is_a_line_and_the_command_sees_nothing_of_it(early):
    early.process.stdin.write(b"\nnot for the command\n")
    assert early.wait() == 0
    assert early.end == (0, 6, "")
    assert early.stdout == b""


def test_it_ends_untold_when_there_will_be_no_turn(early):
    early.process.stdin.close()
    assert early.wait() == 121
    assert sorted(os.listdir(early.folder)) == ["job.wrapped.test", "spool"]
    assert early.events == []


def test_until_its_turn_a_signal_ends_it_untold(early):
    early.signal(signal.SIGTERM)
    assert early.wait() == -signal.SIGTERM
    assert sorted(os.listdir(early.folder)) == ["job.wrapped.test", "spool"]


def test_who_was_given_its_turn_still_needs_the_start_claim(early):
    (early.folder / "job.start.0").touch()
    early.process.stdin.write(b"\n")
    assert early.wait() == 121
    assert early.end is None
