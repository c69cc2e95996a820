"""What becomes of containers whose program dies, or lies elsewhere: scripts stand for programs."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from xqute import SchedulerError
from xqute_container.apptainer_client import ApptainerClient, _find_session
from xqute_container.client import EngineAwayError, Wanted
from xqute_container.command_client import CommandClient
from xqute_container.connect import connect
from xqute_container.options import Runtime
from xqute_container.parse import Stage
from xqute_container.spec import LABEL_KEY, LABEL_METADIR, LABEL_TAG, LABEL_WORKDIR, Spec

DEADLINE_S = 30.0


@pytest.fixture
def script(tmp_path):
    """Make a program of bash code."""

    def script(name, code):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{textwrap.dedent(code)}")
        path.chmod(0o755)
        return str(path)

    return script


@pytest.fixture
def spec(tmp_path):
    labels = {LABEL_KEY: "xq-1-0-0", LABEL_METADIR: str(tmp_path), LABEL_TAG: "1-0"}
    return Spec(
        key="xq-1-0-0",
        image="image",
        entrypoint=("/bin/bash",),
        arguments=("job",),
        labels=labels,
        working_dir="/",
    )


# --- Docker and Podman ---------------------------------------------------------------------------


@pytest.fixture
def podman(script, spec):
    """A Podman whose `run` is this code, and which has one container, in this state."""

    def podman(run, state):
        said = {"Id": "5", "State": {"Status": state}, "Config": {"Labels": spec.labels}}
        code = f"case $1 in run) {run};; container) echo '[{json.dumps(said)}]';; esac"
        return CommandClient([script("podman", code)], Runtime.PODMAN, {}, [])

    return podman


def test_a_program_that_is_killed_may_have_started_the_container(podman, spec):
    """Then the job is not told as refused, and tried again beside it: its claims decide."""
    with pytest.raises(EngineAwayError, match="podman run was ended by signal 9"):
        podman("kill -KILL $$", "created").start(spec)


@pytest.mark.parametrize("state", ["running", "exited"])
def test_what_runs_is_not_told_as_refused_for_what_went_wrong_afterwards(podman, spec, state):
    assert podman("echo no space left on device >&2; exit 125", state).start(spec) == "5"


@pytest.mark.parametrize(
    "words",
    [
        "Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?",
        "failed to connect to the docker API at unix:///x; check if the path is correct",
        'error during connect: Post "http://x": EOF',
    ],
)
def test_a_docker_that_is_away_is_told_so_whatever_its_version(podman, spec, words):
    with pytest.raises(EngineAwayError):
        podman(f"echo '{words}' >&2; exit 1", "created").start(spec)


def test_news_that_break_off_are_asked_for_again(script):
    """What listens takes such an error for an engine that is away for a moment."""
    program = script("podman", """[[ $1 != events ]] || printf '{"Status": "di'""")
    client = CommandClient([program], Runtime.PODMAN, {}, [])
    news = client.listen(0)
    assert next(news) is None
    with pytest.raises(SchedulerError, match="podman events"):
        next(news)


# --- Apptainer -----------------------------------------------------------------------------------


def test_what_was_started_is_found_at_once(script, spec, tmp_path):
    """To spawn a process returns before its command line is there."""
    program = script("apptainer", "[[ $1 != exec ]] || exec sleep 600")
    client = ApptainerClient(program, [], str(tmp_path))
    for number in range(30):
        wanted = Wanted(f"xq-1-{number}-0", str(tmp_path), f"{number}-0")
        labels = {**spec.labels, LABEL_KEY: wanted.key, LABEL_TAG: wanted.tag}
        pid = int(client.start(replace(spec, key=wanted.key, labels=labels)))
        found = client.find(wanted)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        assert found is not None
        assert (found.stage, found.id) == (Stage.RUNNING, str(pid))
    client.close()


def tell_next(news):
    """Give what is told next, or fail when it takes too long."""
    told = queue.Queue()
    threading.Thread(target=lambda: told.put(next(news, None)), daemon=True).start()
    return told.get(timeout=DEADLINE_S)


def test_an_end_is_told_though_somebody_has_looked_before(script, spec, tmp_path):
    """A question about another container must not take the news with it."""
    program = script("apptainer", 'if [[ $1 == exec ]]; then echo "FATAL: no" >&2; exit 255; fi')
    client = ApptainerClient(program, [], str(tmp_path))
    news = client.listen(0)
    assert next(news) is None
    pid = int(client.start(spec))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert client.look() == []
    try:
        ended = tell_next(news)
    finally:
        client.close()
    assert (ended.key, ended.id, ended.exit_code) == (spec.key, str(pid), 255)


def test_a_process_that_is_killed_alone_takes_the_container_with_it(script, spec, tmp_path):
    """Its id is the job's, so that is what a user kills: nothing may run on, and be run again."""
    program = script("apptainer", "[[ $1 != exec ]] || exec sleep 600")
    client = ApptainerClient(program, [], str(tmp_path))
    pid = int(client.start(spec))
    deadline_s = time.monotonic() + DEADLINE_S
    while not (left := [sleep for sleep in _find_session(pid) if is_sleep(sleep)]):
        assert time.monotonic() < deadline_s
    ends = os.pidfd_open(left[0])
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    found = client.find(Wanted(spec.key, str(tmp_path), "1-0"))
    client.close()
    try:
        assert (found.stage, found.exit_code) == (Stage.ENDED, 137)
        assert select.select([ends], [], [], DEADLINE_S) == ([ends], [], [])
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(ends, signal.SIGKILL)
        os.close(ends)


def is_sleep(pid):
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read().startswith(b"sleep")


def test_a_program_may_be_named_from_the_folder_one_is_in(script, spec, tmp_path, monkeypatch):
    script("apptainer", "[[ $1 != exec ]] || echo here >&2")
    monkeypatch.chdir(tmp_path)
    labels = {LABEL_WORKDIR: str(tmp_path)}
    given = {"socket": None, "bin_args": [], "labels": labels}
    client = connect(Runtime.APPTAINER, "bin/apptainer", **given)
    pid = int(client.start(spec))
    client.close()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.needs("unshare", root=True)
def test_processes_that_are_hidden_are_nobodys_containers():
    """As /proc is mounted where many users share a machine: theirs cannot be looked at."""
    look = """
import os
from xqute_container.apptainer_client import _find_session, _find_supervisors
os.setgroups([])
os.setgid(4321)
os.setuid(4321)
print(_find_supervisors(None), _find_session(1))
"""
    code = 'mount -t proc -o hidepid=1 proc /proc && "$@"; exit'
    argv = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", code, "-"]
    argv += [sys.executable, "-c", look]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.stdout, done.returncode) == ("[] []\n", 0), done.stderr
