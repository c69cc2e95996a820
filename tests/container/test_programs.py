"""What becomes of containers whose program dies, or lies elsewhere: scripts stand for programs."""

from __future__ import annotations

import json
import textwrap

import pytest

from xqute_container.client import EngineAwayError
from xqute_container.command_client import CommandClient
from xqute_container.options import Runtime
from xqute_container.spec import LABEL_KEY, LABEL_METADIR, LABEL_TAG, Spec


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
