"""The contract on real engines: all of it on Docker, elsewhere the promises that touch the backend.

With TEST_ENGINES=all in the environment all promises are tried on all of them, which takes long.
With `--kills=40` 20 drivers are killed at random on each engine, and 5 at each edge.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from xqute.testing import CHAOS_EDGES, SchedulerContract, run_chaos
from xqute_container import ContainerScheduler

#: What depends on how containers are made, seen, signalled and found again.
TOUCHING = frozenset(
    {
        "test_a_command_may_end_itself_at_its_timeout",
        "test_a_command_that_ignores_term_is_killed",
        "test_a_failed_submission_is_told",
        "test_a_job_is_running_until_it_has_ended",
        "test_a_job_is_told_who_it_is",
        "test_a_job_outlives_the_driver_that_started_it",
        "test_a_kill_leaves_nothing_behind",
        "test_a_killed_command_may_clean_up",
        "test_a_late_end_of_a_lost_job_changes_nothing",
        "test_a_lost_answer_runs_no_command_twice",
        "test_a_revoked_attempt_never_runs",
        "test_a_wrapper_that_was_killed_is_no_success",
        "test_an_id_of_another_makes_no_job_run",
        "test_arguments_arrive_byte_for_byte",
        "test_asking_about_many_is_asking_about_each",
        "test_exit_codes_are_true_when_many_jobs_end_at_once",
        "test_killing_what_has_ended_is_no_error",
        "test_the_command_runs_in_cwd",
        "test_the_exit_code_is_the_commands",
        "test_two_starts_of_one_attempt_run_the_command_once",
    }
)
#: The same engine by another way: only what differs.
OTHER_WAY = frozenset(
    {
        "test_a_job_is_told_who_it_is",
        "test_a_job_outlives_the_driver_that_started_it",
        "test_a_kill_leaves_nothing_behind",
        "test_a_killed_command_may_clean_up",
        "test_a_lost_answer_runs_no_command_twice",
        "test_asking_about_many_is_asking_about_each",
        "test_two_starts_of_one_attempt_run_the_command_once",
    }
)


def _share(promises):
    """The promises that are tried on an engine of which another has them all; None: all, too."""
    return None if os.environ.get("TEST_ENGINES") == "all" else promises


class EngineContract(SchedulerContract):
    """What is said of all engines.

    Attributes:
        engine_name: The fixture of the engine.
        tried: The promises that are tried; None: all. The others are deselected.
    """

    engine_name: str
    tried: frozenset[str] | None = None
    deadline_s = 110.0
    many = 16
    #: The driver is dead, or was told to look no more: the containers run on.
    leaves_something = (
        "test_a_job_outlives_the_driver_that_started_it",
        "test_a_status_set_by_a_plugin_ends_the_watching",
        "test_a_late_end_of_a_lost_job_changes_nothing",
    )

    @pytest.fixture(autouse=True)
    def _engine(self, engine):
        """Nothing is left of any test."""

    def make_scheduler(self, workdir, **keywords):
        options = json.loads(os.environ[f"TEST_ENGINE_{self.engine_name}"])
        return ContainerScheduler(**{**options, "workdir": workdir, **keywords})

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.kill_grace_s = 1.0
        scheduler.kill_timeout_s = 30.0

    def break_submissions(self, scheduler):
        scheduler.resources = {"queue": "long"}
        return "queue"

    def find_wrapper(self, job, pid):
        """All processes of a job but the first of its container, and who watches that."""
        found = find_processes("cgroup", str(job.jid))
        others = {*find_processes("cmdline", "init"), *find_processes("cmdline", "conmon", n=0)}
        return [pid for pid in found if pid not in others]


@pytest.mark.needs("dockerd", "docker", "busybox", root=True)
class TestDocker(EngineContract):
    engine_name = "docker"


@pytest.mark.needs("podman", "catatonit", "busybox", root=True)
class TestPodman(EngineContract):
    engine_name = "podman"
    tried = _share(TOUCHING)


@pytest.mark.needs("podman", "catatonit", "busybox", root=True)
class TestPodmanSocket(EngineContract):
    engine_name = "podman_socket"
    tried = _share(OTHER_WAY)


@pytest.mark.needs("dockerd", "docker", "busybox", root=True)
class TestDockerProgram(EngineContract):
    engine_name = "docker_program"
    tried = _share(OTHER_WAY)


class TestPodmanRootless(EngineContract):
    """Run by an ordinary user: see test_rootless.py."""

    engine_name = "podman_rootless"
    tried = _share(OTHER_WAY) if "TEST_ROOTLESS" in os.environ else frozenset()

    def find_wrapper(self, job, pid):
        return find_processes("cmdline", "job.wrapped")


@pytest.mark.needs("apptainer", "busybox")
class TestApptainer(EngineContract):
    engine_name = "apptainer"
    tried = _share(TOUCHING)

    def find_wrapper(self, job, pid):
        found = find_processes("stat", f" {job.jid} {job.jid} 0 ")  # group and session, no terminal
        return [pid for pid in found if str(pid) != job.jid]


def find_processes(name, word, n=1):
    """The processes, at least n, that have a word in a file of theirs in /proc."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert len(found) >= n, f"no process has {word!r} in its {name}"
    return found


# --- drivers that die ----------------------------------------------------------------------------


class ContainersCount(EngineContract):
    """A container that is left counts like a process that is left."""

    def __init__(self, engine):
        self.engine_name = engine.name
        self.program = engine.program

    def find_processes(self, word):
        found = super().find_processes(word)
        if self.engine_name == "apptainer":
            return found
        argv = [*self.program, "ps", "--all", "--format", "{{.Names}} {{.Status}} {{.Labels}}"]
        said = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        return [*found, *(line for line in said.splitlines() if word in line)]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("docker", marks=pytest.mark.needs("dockerd", "docker", "busybox", root=True)),
        pytest.param(
            "podman", marks=pytest.mark.needs("podman", "catatonit", "busybox", root=True)
        ),
        pytest.param("apptainer", marks=pytest.mark.needs("apptainer", "busybox")),
    ],
)
def test_drivers_that_are_killed_lose_and_double_nothing(name, request, tmp_path, seed, capsys):
    """A sample, at a few of the edges; see above for more."""
    engine = request.getfixturevalue(name)
    kills = request.config.option.kills // 2
    edges = CHAOS_EDGES if kills > 10 else random.sample(CHAOS_EDGES, 3)
    report = run_chaos(
        ContainersCount(engine),
        tmp_path,
        kills=kills,
        hits=max(1, kills // 4),
        edges=edges,
        n_jobs=12,
        span_s=2.0,
        seed=seed,
    )
    with capsys.disabled():
        sys.stdout.write(f"\n{name}: {report}\n")
    report.check()
    assert engine.containers() == []
    assert not list(tmp_path.rglob("job.container*"))
