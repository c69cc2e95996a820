"""The contract on a real Docker engine, through its socket: all of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from xqute import JobOutcome, JobStatus
from xqute.testing import SchedulerContract, bash, overrides_contract
from xqute_container import ContainerScheduler

pytestmark = pytest.mark.needs("dockerd", "docker", "busybox", root=True)


class TestDocker(SchedulerContract):
    engine_name = "docker"
    deadline_s = 110.0
    many = 30
    leaves_something = ("test_a_job_outlives_the_driver_that_started_it",)

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
        scheduler.entrypoint = ["/no/such/bash"]
        return "/no/such/bash"

    @overrides_contract
    async def test_a_wrapper_that_was_killed_is_no_success(self, rig):
        """The claim names the process as its container sees it: here it is looked for outside."""
        async with rig.running() as xq:
            job = await rig.feed_ready(xq, bash("echo ready; exec sleep 60"))
            for pid in processes_of(job):
                os.kill(pid, signal.SIGKILL)
        assert job.status is JobStatus.FAILED
        assert job.outcome in (JobOutcome.FAILED, JobOutcome.LOST)
        assert job.rc != 0
        assert job.cause
        assert job.reason


def processes_of(job):
    """The processes in the container of a job, but its first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cgroup"):
        try:
            if str(job.jid) in path.read_text():
                command = (path.parent / "cmdline").read_bytes()
                if b"init" not in command.partition(b"\0")[0]:
                    found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert found
    return found
