"""`xqute unlock`: what is gone is freed, what is alive is not, and it says which it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("job_processes")

#: The command with other times between two signs of life.
IMPATIENT = """
import sys
from xqute import _ownership
_ownership.BEAT_S = float(sys.argv.pop(1))
from xqute.cli import main
main()
"""


@pytest.fixture
def run(cli, tmp_path):
    """A run that has ended, and what its owner's record is called now."""
    cli("run", "--workdir", "w", "true {}", ":::", "a")
    (entry,) = (tmp_path / "w" / ".run" / "owner").glob("free.*")
    return entry


def leave_record(entry, host="elsewhere", age_s=5.0):
    held = entry.rename(entry.with_name(f"held{entry.suffix}"))
    held.write_text(f"{host} another - 4711 1 1700000000 flock\n")
    last_s = time.time() - age_s
    os.utime(held, (last_s, last_s))
    return held


@pytest.fixture
def xqute(tmp_path):
    """Start the command with other seconds between two signs of life."""
    started = []

    def start(*args, beat_s=0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, str(beat_s), *args],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_workdir_that_nobody_owns_is_left_alone(cli, run):
    assert cli("unlock", "w").stdout == b"w is not locked\n"
    assert run.exists()


def test_the_latest_run_is_meant_if_none_is_named(cli):
    cli("run", "true {}", ":::", "a")
    assert b"is not locked" in cli("unlock").stdout


def test_one_whose_owner_is_gone_is_freed_at_once(cli, run):
    leave_record(run, age_s=1000)
    out = cli("unlock", "w").stdout.decode()
    assert out.startswith("w is free; its owner was pid 4711 on elsewhere since ")
    assert out.endswith("which is gone\n")
    assert cli("unlock", "w").stdout == b"w is not locked\n"


def test_one_whose_owner_is_alive_here_is_refused(cli, tmp_path):
    process = cli.start("run", "--workdir", "w", "sleep 60; : {}", ":::", "a")
    cli.wait_for((tmp_path / "w" / "0" / "job.status").exists)
    done = cli("unlock", "w", rc=2)
    assert f"pid {process.pid} on".encode() in done.stderr
    assert b"--force" in done.stderr
    assert b"Another run" in cli("run", "--workdir", "w", "true {}", ":::", "a", rc=2).stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_with_force_it_is_freed_and_its_run_leaves_it(xqute, cli, tmp_path, job_processes):
    command = ["run", "--workdir", "w", "-j1", "until [[ -e {} ]]; do sleep 0.01; done"]
    process = xqute(*command, ":::", "a", "b")
    cli.wait_for((tmp_path / "w" / "0" / "job.status").exists)
    out = cli("unlock", "--force", "w").stdout.decode()
    assert f"pid {process.pid} on" in out
    _, err = process.communicate(timeout=30)
    assert process.returncode == 3, err
    assert "2 jobs are left to whoever has taken the workdir over" in err
    for name in ("a", "b"):
        (tmp_path / name).touch()
    done = cli(*command, ":::", "a", "b")
    assert b"2 succeeded" in done.stderr


def test_one_on_another_host_that_gives_no_sign_of_life_is_freed(run, xqute):
    leave_record(run)
    process = xqute("unlock", "w")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "which gives no sign of life" in out
    assert "Waiting for a sign of life of pid 4711 on elsewhere" in err


def test_one_on_another_host_that_gives_a_sign_of_life_is_refused(run, xqute):
    held = leave_record(run)
    process = xqute("unlock", "w", beat_s=1000)
    assert "Waiting" in process.stderr.readline()
    os.utime(held)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "on elsewhere" in err
    assert "--force" in err
    assert held.exists()


def test_a_workdir_that_is_none_is_an_error(cli):
    assert b"not the folder of a run" in cli("unlock", "nowhere", rc=2).stderr
