"""`xqute status`, `logs`, `schedulers`, `doctor`, `--version`: what they tell is so."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from importlib.metadata import version

import pytest

pytestmark = pytest.mark.usefixtures("job_processes")


def records(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def has_line(text, pattern):
    """Whether a line of the text begins like this."""
    return re.search(f"^{pattern}", text, re.MULTILINE) is not None


def test_version(cli):
    assert cli("--version").stdout.decode() == f"xqute {version('xqute-core')}\n"


def test_help_names_every_command(cli):
    text = cli("--help").stdout.decode()
    for name in ("run", "status", "logs", "schedulers", "doctor"):
        assert has_line(text, rf"  {name} ")
        assert cli(name, "--help").stdout.startswith(b"Usage: xqute " + name.encode())


# --- status --------------------------------------------------------------------------------------


def test_status_counts_the_jobs_of_the_latest_run(cli):
    cli("run", "exit {}", ":::", "0", "0", "3", rc=1)
    text = cli("status", rc=1).stdout.decode()
    assert re.search(r"runs/\S+: 3 jobs\n +2 succeeded .*\n +1 failed ", text)
    assert cli("status", "--failed", rc=1).stdout.decode().startswith("#2 failed rc 3\n")


def test_status_in_json(cli):
    cli("run", "--timeout", "0.2", "sleep {}", ":::", "0", "60", rc=1)
    job, whole = records(cli("status", "--failed", "--json", rc=1))
    assert (job["index"], job["state"], job["rc"]) == (1, "failed", 143)
    assert (whole["total"], whole["succeeded"], whole["failed"], whole["at_work"]) == (
        2,
        1,
        1,
        None,
    )


def test_status_of_a_job_whose_claims_are_being_removed(cli):
    cli("run", "exit {}", ":::", "3", rc=1)
    (cli.latest / "0" / "job.end.gone").symlink_to("nowhere")  # listed, and not there
    assert cli("status", "--failed", rc=1).stdout.startswith(b"#0 failed rc 3\n")


def test_status_finds_a_run_by_path_and_by_name(cli):
    cli("run", "true {}", ":::", "a")
    name = cli.latest.resolve().name
    cli("run", "false {}", ":::", "a", rc=1)
    cli("status", rc=1)
    for run in (name, f".xqute/runs/{name}", str(cli.latest.resolve().parent / name)):
        assert b"1 succeeded" in cli("status", run).stdout


def test_a_workdir_that_is_no_text_is_named_as_it_is(cli, tmp_path):
    strict = {"PYTHONIOENCODING": "utf-8:strict"}  # as in most locales
    cli("run", "--workdir", b"w\xff", "true {}", ":::", "a", env=strict)
    assert cli("status", b"w\xff", env=strict).stdout.startswith(b"w\xff: 1 jobs\n")
    assert cli("unlock", b"w\xff", env=strict).stdout == b"w\xff is not locked\n"
    done = cli("doctor", env=strict, cwd=os.fsencode(tmp_path) + b"/w\xff")
    assert b"/w\xff: writable" in done.stdout


def test_status_while_the_run_is_at_work(cli):
    process = cli.start("run", "-j1", "sleep 60; : {}", ":::", "a", "b")
    cli.wait_for(lambda: cli.latest.exists() and (cli.latest / "1").exists())
    cli.wait_for((cli.latest / "0" / "job.status").exists)
    (whole,) = records(cli("status", "--json"))
    assert (whole["running"], whole["waiting"]) == (1, 1)
    assert f"pid {process.pid} " in whole["at_work"]
    # Looking did not take the lock away from anybody.
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143


def test_status_tells_of_jobs_that_outlive_their_run_and_of_those_that_vanished(cli):
    process = cli.start("run", "-j2", "echo $PPID; exec sleep 60; : {}", ":::", "a", "b")
    outputs = [cli.latest / name / "job.stdout" for name in "01"]
    pids = [
        int(cli.wait_for(lambda path=path: path.exists() and path.read_text().strip()))
        for path in outputs
    ]
    process.kill()
    process.wait()
    (whole,) = records(cli("status", "--json"))
    assert (whole["running"], whole["vanished"], whole["at_work"]) == (2, 0, None)
    sessions = [os.getsid(pid) for pid in pids]
    os.killpg(sessions[0], signal.SIGKILL)
    cli.wait_for(lambda: records(cli("status", "--json", rc=None))[0]["vanished"])
    (whole,) = records(cli("status", "--json", rc=1))
    assert (whole["running"], whole["vanished"]) == (1, 1)
    os.killpg(sessions[1], signal.SIGKILL)


def test_status_of_jobs_that_were_not_submitted_or_lost(backends):
    backends("run", "-s", "refusing", "true {}", ":::", "a", rc=3)
    (whole,) = records(backends("status", "--json", rc=1))
    assert whole["not_submitted"] == 1


# --- logs ----------------------------------------------------------------------------------------


def test_logs_prints_both_outputs_of_a_job(cli):
    cli("run", "-q", "echo out {}; echo err {} >&2", ":::", "a", "b")
    done = cli("logs", "1")
    assert (done.stdout, done.stderr) == (b"out b\n", b"err b\n")
    assert "There is no job 2 in" in cli("logs", "2", rc=2).stderr.decode()


def test_logs_follows_a_job_to_its_end(cli, tmp_path):
    command = "echo one; until [ -e go ]; do sleep 0.01; done; echo two; : {}"
    process = cli.start("run", "-q", "--no-output", command, ":::", "a")
    cli.wait_for((cli.latest / "0" / "job.stdout").exists)
    logs = cli.start("logs", "-f", "0")
    assert logs.stdout.readline() == b"one\n"
    (tmp_path / "go").touch()
    assert logs.stdout.read() == b"two\n"
    assert logs.wait(30) == 0
    assert process.wait(30) == 0


def test_logs_follows_through_a_retry(cli, tmp_path):
    """The files of the first attempt are put aside while they are being followed."""
    command = "echo try $XQUTE_JOB_TRIAL; until [ -e go{} ]; do sleep 0.01; done; exit 1"
    process = cli.start("run", "-q", "--no-output", "--retries", "1", command, ":::", "1")
    path = cli.latest / "0" / "job.stdout"
    cli.wait_for(lambda: path.exists() and path.read_text())
    logs = cli.start("logs", "-f", "0")
    assert logs.stdout.readline() == b"try 0\n"
    (tmp_path / "go1").touch()
    assert process.wait(30) == 1
    rest = logs.stdout.read()
    assert logs.wait(30) == 0
    assert rest in (b"", b"try 1\n")  # it may have looked between the two


def test_logs_does_not_wait_for_a_job_that_nobody_begins_any_more(cli):
    cli("run", "-j1", "--halt", "exit {}", ":::", "1", "0", rc=1)
    assert cli("logs", "-f", "1").stdout == b""


def test_logs_into_a_pipe_that_closes(cli):
    cli("run", "-q", "--no-output", "head -c 1000000 /dev/zero; : {}", ":::", "a")
    done = subprocess.run(
        ["bash", "-c", "xqute logs 0 | head -c 1 | wc -c; echo ${PIPESTATUS[0]}"],
        cwd=cli.cwd, env=cli.env, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == ([b"1", b"141"], b"")


# --- schedulers, doctor --------------------------------------------------------------------------


def test_schedulers_lists_what_is_there_and_how_to_get_the_others(backends):
    text = backends("schedulers").stdout.decode()
    assert re.search(
        r"^local +xqute-core \S+  xqute\.schedulers\.local_scheduler:", text, re.MULTILINE
    )
    assert re.search(
        r"^refusing +xqute-badly 1\.5  xqute_badly:RefusingScheduler$", text, re.MULTILINE
    )
    assert has_line(text, r"broken .*UNUSABLE: .*cannot be imported")
    found = {record["name"]: record for record in records(backends("schedulers", "--json"))}
    assert found["local"]["error"] is None
    for name in ("slurm", "sge", "ssh", "container", "gbatch"):
        if not found[name]["installed"]:
            assert re.search(
                rf"^{name} +not installed: pip install xqute-{name}$", text, re.MULTILINE
            )


def test_doctor_finds_that_jobs_run_here(cli, tmp_path):
    found = {record["name"]: record for record in records(cli("doctor", "--json"))}
    for name in ("python", "xqute", "bash", "workdir", "a job", "scheduler local"):
        assert found[name]["state"] == "ok", found[name]
    assert list(tmp_path.iterdir()) == []


def test_doctor_tells_what_is_bad(backends, tmp_path):
    site = tmp_path / "site" / "xqute-2.0.dist-info"
    site.mkdir()
    (site / "METADATA").write_text("Metadata-Version: 2.1\nName: xqute\nVersion: 2.0\n")
    (tmp_path / "file").touch()
    text = backends("doctor", "--workdir", "file", rc=1).stdout.decode()
    assert re.search(
        r"^bad +xqute .*distribution xqute 2\.0 .*pip uninstall xqute", text, re.MULTILINE
    )
    assert has_line(text, r"bad +workdir +FileExistsError")
    assert has_line(text, r"bad +scheduler broken .*cannot be imported")
    assert has_line(text, r"ok +scheduler refusing ")
