"""What the exit code says, one test for each code and each bad input."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.usefixtures("job_processes")


def error_of(done):
    text = done.stderr.decode()
    assert done.stdout == b""
    assert "Error: " in text
    return text.partition("Error: ")[2]


# --- 0, 1, 3 -------------------------------------------------------------------------------------


def test_0_all_succeeded(cli):
    cli("run", "true {}", ":::", "a", "b")


def test_1_some_failed(cli):
    cli("run", "exit {}", ":::", "0", "1", "0", rc=1)
    cli("run", "kill -9 $$ {}", ":::", "a", rc=1)
    cli("run", "no-such-program", ":::", "a", rc=1)


def test_3_jobs_could_not_be_submitted(backends):
    done = backends("run", "-s", "refusing", "true", ":::", "a", rc=3)
    assert "not submitted: SubmitError: the queue is closed" in done.stderr.decode()


def test_3_jobs_are_lost(backends):
    done = backends("run", "-s", "losing", "true", ":::", "a", rc=3)
    assert "lost: losing has no such job" in done.stderr.decode()


def test_3_the_backend_cannot_be_reached(backends):
    assert "the controller does not answer" in error_of(
        backends("run", "-s", "closed", "true", ":::", "a", rc=3)
    )


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_3_standard_output_takes_no_more(cli):
    with open("/dev/full", "wb") as full:
        process = cli.start("run", "echo {}", ":::", "a", "b", stdout=full)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 3
    assert b"standard output: " in stderr
    assert b"No space left" in stderr


def test_3_the_folder_of_a_job_cannot_be_made(cli, tmp_path):
    """What is fed by then runs to its end; of the rest it is said that it was not begun."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "2").touch()
    done = cli("run", "--workdir", "work", "-k", "echo {}", ":::", *"abcde", rc=3)
    assert done.stdout == b"a\nb\n"
    assert b"The run could not go on: Cannot make the folder of job 2" in done.stderr
    assert b"2 succeeded, 3 not begun" in done.stderr


# --- 2: bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "--no-such-option", "x"], "No such option"),
        (["run", "-j", "0", "x"], "0 is not in the range"),
        (["run", "-j", "many", "x"], "not a valid integer"),
        (["run", "--retries", "-1", "x"], "-1 is not in the range"),
        (["run", "--timeout", "-1", "x"], "-1"),
        (["run", "--output", "all", "x"], "'all' is not one of"),
        (["run", "-s", "slrum", "x", ":::", "a"], "Did you mean 'slurm'?"),
        (
            ["run", "--opt", "recheck_intervl=3", "x", ":::", "a"],
            "did you mean 'recheck_interval'?",
        ),
        (["run", "--opt", "forks=3", "x", ":::", "a"], "--opt forks: use --forks"),
        (["run", "--opt", "forks", "x", ":::", "a"], "'forks' is not NAME=VALUE"),
        (["run", "--env", "a-b=1", "x", ":::", "a"], "Environment variable 'a-b'"),
        (["run", "--env", "UID=1", "x", ":::", "a"], "UID: readonly in bash"),
        (["run", "--env", "=1", "x", ":::", "a"], "'=1' is not NAME=VALUE"),
        (["run", "--workdir", "", "x", ":::", "a"], "--workdir is empty"),
        (["run", "--resume", "--workdir", "", "x", ":::", "a"], "--workdir is empty"),
        (["run", "--cwd", "nowhere", "x", ":::", "a"], "--cwd nowhere: there is no such folder"),
        (["run", "--plugin", "nobody", "x", ":::", "a"], "No plugin named nobody"),
        (["run", "-p", "nobody", "x", ":::", "a"], "Profile 'nobody': no xqute.toml"),
        (["run", "-f", "nowhere", "x"], "--file nowhere: No such file"),
        (["run", "-f", ".", "x"], ". cannot be read: Is a directory"),
        (["run", "-f", "x", "x", ":::", "a"], "--file and --null are for lines"),
        (["run", "-0", "x", ":::", "a"], "--file and --null are for lines"),
        (["run", ":::", "a"], "there is none"),
        (["run", "", ":::", "a"], "TEMPLATE is empty"),
        (["run", "echo it's", ":::", "a"], "TEMPLATE: a ' is not closed"),
        (["run", "echo `{}`", ":::", "a"], "Name the value first"),
        (["run", "for x in {}; do", ":::", "a"], "syntax error"),
        (["run", "echo {2}", ":::", "a"], "{2} is used"),
        (["run", "echo {}", "more", ":::", "a"], "'more' after the template 'echo {}'"),
        (["run", "echo {}", "--no-such", ":::", "a"], "No such option"),
        (["run", "x", ":::"], "There is nothing to run"),
        (["run", "x", ":::", "a", ":::"], "There is nothing to run"),
        (["run", "x"], "There is nothing to run"),
        (["run"], "There is nothing to run"),
        (["status"], "There is no run in"),
        (["status", "nowhere"], "nowhere is not the folder of a run"),
        (["logs", "0"], "There is no run in"),
        (["logs"], "Missing argument"),
        (["no-such-command"], "No such command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_2_and_a_sentence_that_names_the_thing(cli, tmp_path, args, words):
    assert words in error_of(cli(*args, rc=2))
    assert list(tmp_path.iterdir()) == []


def test_2_nothing_but_comments_to_run(cli):
    assert "nothing to run" in error_of(cli("run", stdin=b"\n# nothing\n", rc=2))


def test_2_standard_input_is_closed(cli):
    done = subprocess.run(
        ["bash", "-c", "xqute run echo <&-"],
        cwd=cli.cwd, env=cli.env, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, b"standard input is closed" in done.stderr) == (2, True)


def test_2_the_workdir_is_a_file(cli, tmp_path):
    (tmp_path / "file").touch()
    for workdir in ("file", "file/below"):
        assert "is not a folder" in error_of(
            cli("run", "--workdir", workdir, "x", ":::", "a", rc=2)
        )


def test_2_the_workdir_is_not_writable(cli, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    # For root there is hardly such a folder.
    workdir = "/proc/below" if os.geteuid() == 0 else "locked/below"
    done = cli("run", "--workdir", workdir, "x", ":::", "a", rc=2)
    assert "The workdir" in error_of(done)


def test_2_the_workdir_is_in_the_hands_of_another_run(cli, tmp_path):
    first = cli.start("run", "--workdir", "shared", "sleep 60; : {}", ":::", "a")
    cli.wait_for((tmp_path / "shared" / "0" / "job.status").exists)
    words = error_of(cli("run", "--workdir", "shared", "x", ":::", "a", "b", rc=2))
    assert f"pid {first.pid}" in words
    assert not (tmp_path / "shared" / "1").exists()
    first.send_signal(signal.SIGTERM)
    assert first.wait(30) == 143


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        ("fork = 1", "'fork': no such option; did you mean 'forks'?"),
        ('forks = "many"', "'many' is not a valid integer range. (in xqute.toml)"),
        ("forks = [", "xqute.toml: "),
        ('env = { "a-b" = 1 }', "Environment variable 'a-b'"),
    ],
)
def test_2_a_profile_is_wrong(cli, tmp_path, profile, words):
    (tmp_path / "xqute.toml").write_text(f"[profile.p]\n{profile}\n")
    assert words in error_of(cli("run", "-p", "p", "x", ":::", "a", rc=2))
    if "[" not in profile:
        assert "has: p" in error_of(cli("run", "-p", "q", "x", ":::", "a", rc=2))


def test_2_the_scheduler_refuses_its_options(backends):
    assert "'queue'" in error_of(backends("run", "-s", "picky", "x", ":::", "a", rc=2))


def test_2_the_scheduler_cannot_be_imported(backends):
    words = error_of(backends("run", "-s", "broken", "x", ":::", "a", rc=2))
    assert "'broken' (xqute_badly_not_there:Scheduler) cannot be imported" in words


# --- 130, 143, 141 -------------------------------------------------------------------------------


@pytest.mark.concurrency
@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_kills_what_runs(cli, job_processes, sig):
    process = cli.start("run", "-j2", "sleep 60; : {}", ":::", *map(str, range(2000)))
    cli.wait_for(lambda: len(list(cli.latest.glob("*/job.status"))) == 2)
    process.send_signal(sig)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + sig
    assert b"2 killed, 1,998 not begun" in stderr
    assert job_processes() == []


@pytest.mark.concurrency
def test_a_signal_stops_a_run_that_waits_for_a_line(cli):
    process = cli.start("run", "echo {}")
    process.stdin.write(b"a\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"a\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_130_before_there_was_anything_to_run(cli):
    process = cli.start("run", "echo {}")
    # The threads that read and write are there: it waits for a line.
    cli.wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 3)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert b"Traceback" not in process.stderr.read()


@pytest.mark.concurrency
def test_the_second_signal_stops_at_once(cli, tmp_path, job_processes):
    command = "trap '' TERM; touch ready; while :; do sleep 0.05; done; : {}"
    process = cli.start("run", command, ":::", "a")
    cli.wait_for((tmp_path / "ready").exists)
    process.send_signal(signal.SIGINT)
    assert b"stopping gracefully, once more: at once" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    began_s = time.monotonic()
    assert process.wait(30) == 130
    assert time.monotonic() - began_s < 5  # half the grace that the first one gives
    assert job_processes() == []


@pytest.mark.concurrency
@pytest.mark.parametrize("options", [[], ["-k"], ["--json"]])
def test_141_when_the_reader_of_the_output_goes_away(cli, job_processes, options):
    process = cli.start("run", *options, "echo {}", stdin=subprocess.PIPE)
    process.stdin.write(b"a\n" * 10_000)
    process.stdin.flush()
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 141
    stderr = process.stderr.read()
    assert b"not begun" in stderr
    assert b"Traceback" not in stderr
    assert job_processes() == []


def test_a_closed_standard_error_stops_nothing(cli):
    done = subprocess.run(
        ["bash", "-c", "xqute run 'echo {}; exit {}' ::: 0 1 2>&-"],
        cwd=cli.cwd, env=cli.env, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, sorted(done.stdout.split())) == (1, [b"0", b"1"])


def test_a_closed_standard_output_stops_nothing(cli):
    done = subprocess.run(
        ["bash", "-c", "xqute run 'echo {}; exit {}' ::: 0 1 >&-"],
        cwd=cli.cwd, env=cli.env, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"1 succeeded, 1 failed" in done.stderr
