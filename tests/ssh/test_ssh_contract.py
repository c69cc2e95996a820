"""The SSH scheduler keeps the contract over real servers: one, three, of one channel, unshared.

Unshared and of one channel: see test_ssh_staging.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import ClassVar

import pytest

from xqute import SpecPath
from xqute.testing import SchedulerContract, bash, overrides_contract, run_chaos
from xqute_ssh import SshScheduler


@pytest.mark.usefixtures("servers")
class TestShared(SchedulerContract):
    """The workdir is seen by the driver and by the server."""

    names: ClassVar = ("a",)
    many = 60

    def make_scheduler(self, workdir, **keywords):
        options = json.loads(os.environ["KIT_SSH_SERVERS"])
        servers = {name: options[name] for name in self.names}
        return SshScheduler(workdir, servers=servers, **keywords)


class TestThreeServers(TestShared):
    names = ("a", "b", "c")


class TestOneChannel(TestShared):
    """The server allows one session per connection (MaxSessions 1)."""

    names = ("one",)


_NOBODY_BRINGS = "it reads a job's files here while no driver lives, and nobody brings them then"


class _LetsGo(SshScheduler):
    """Some promises let a job go on by a file in the driver's folder: the job has a link to it."""

    def create_job(self, index, cmd, envs=None):
        job = super().create_job(index, cmd, envs)
        os.makedirs(str(job.metadir.mounted), exist_ok=True)
        link = f"{job.metadir.mounted}/go"
        if not os.path.lexists(link):
            os.symlink(f"{job.metadir}/go", link)
        return job


class TestUnshared(TestShared):
    """Jobs have a workdir of their own on the server."""

    does_not_apply: ClassVar = {
        "test_a_job_that_the_backend_forgets_tells_its_end": _NOBODY_BRINGS,
        "test_a_kill_of_a_re_attached_job_leaves_nothing_behind": _NOBODY_BRINGS,
        "test_a_late_end_of_a_lost_job_changes_nothing": _NOBODY_BRINGS,
        "test_a_re_attached_job_that_ignores_term_is_killed": _NOBODY_BRINGS,
        "test_what_ended_while_no_driver_lived_has_its_true_end": _NOBODY_BRINGS,
    }

    def make_workdir(self, tmp_path, name):
        return SpecPath(tmp_path / name, mounted=f"{tmp_path / name}-there")

    def make_scheduler(self, workdir, **keywords):
        options = json.loads(os.environ["KIT_SSH_SERVERS"])
        servers = {name: options[name] for name in self.names}
        if not isinstance(workdir, SpecPath):
            keywords["mounted_workdir"] = f"{workdir}-there"
        return _LetsGo(workdir, servers=servers, log_interval=0.1, **keywords)

    def read(self, job, name):
        # What a job writes into its folder by itself stays there.
        folder = job.metadir if name.startswith("job.") else job.metadir.mounted
        try:
            with open(f"{folder}/{name}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    @overrides_contract
    async def test_a_job_outlives_the_driver_that_started_it(self, rig):
        """It tells its end on the server, and the next driver brings that home."""
        script = "until [[ -e $XQUTE_JOB_METADIR/go ]]; do sleep 0.01; done; echo done; exit 7"
        with rig.driver(bash(script)) as driver:
            await asyncio.to_thread(driver.expect, "submitted", 0)
        async with rig.backend() as backend:
            job = backend.create(bash("true"))
            [claim] = [name for name in os.listdir(job.metadir) if name.startswith("job.start.")]
            job.run_id = claim.removeprefix("job.start.").removesuffix("-0")
            await backend.scheduler.reattach([job])
            assert await backend.scheduler.job_is_running(job)
            job.write_file("go", "")
            await backend.until_gone(job)
        here = {name: (job.metadir / name).read_bytes() for name in ("job.rc", "job.status")}
        assert here == {"job.rc": b"7", "job.status": b"7"}
        assert job.stdout_file.read_bytes() == b"done\n"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("contract", [TestThreeServers, TestUnshared])
def test_drivers_that_are_killed_lose_and_double_nothing(
    servers, tmp_path, seed, request, capsys, contract
):
    """A sample; `--kills=40` kills 20 at random and 5 at each edge."""
    kills = request.config.option.kills // 2
    report = run_chaos(contract(), tmp_path, kills=kills, hits=max(1, kills // 4), seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{contract.__name__}, {report}\n")
    report.check()
