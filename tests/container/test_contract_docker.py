"""The contract on a real Docker engine, through its socket: all of it."""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from xqute import JobOutcome, JobStatus
from xqute.testing import SchedulerContract, bash, overrides_contract
from xqute_container import ContainerScheduler

pytestmark = pytest.mark.needs("dockerd", "docker", "busybox", root=True)


class TestDocker(SchedulerContract):
    engine_name = "docker"
    deadline_s = 110.0
    many = 16
    #: The driver is dead, or was told to look no more: the containers run on.
    leaves_something = (
        "test_a_job_outlives_the_driver_that_started_it",
        "test_a_status_set_by_a_plugin_ends_the_watching",
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

    @overrides_contract
    async def test_a_wrapper_that_was_killed_is_no_success(self, rig):
        """The claim names the process as its container sees it: here it is looked for outside."""
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, bash("echo ready; exec sleep 60"))
            for pid in self.processes_of(job):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        assert job.status is JobStatus.FAILED
        assert job.outcome in (JobOutcome.FAILED, JobOutcome.LOST)
        assert job.rc != 0
        assert job.cause
        assert job.reason

    def processes_of(self, job):
        """All processes of a job but the first of its container."""
        found = find_processes("cgroup", str(job.jid))
        return [pid for pid in found if pid not in find_processes("cmdline", "init")]


class TestPodman(TestDocker):
    engine_name = "podman"


class TestApptainer(TestDocker):
    engine_name = "apptainer"

    def processes_of(self, job):
        found = find_processes("stat", f" {job.jid} {job.jid} 0 ")  # group and session, no terminal
        return [pid for pid in found if str(pid) != job.jid]


def find_processes(name, word):
    """The processes that have a word in a file of theirs in /proc."""
    found = []
    for path in Path("/proc").glob(f"[0-9]*/{name}"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert found, f"no process has {word!r} in its {name}"
    return found
