"""The gbatch scheduler keeps the contract, over a Batch service and a store on loopback."""

from __future__ import annotations

import json
import os
import sys
import uuid
from typing import ClassVar

import pytest

from xqute import _clouds
from xqute.testing import SchedulerContract, run_chaos
from xqute_gbatch import GbatchScheduler

pytestmark = [pytest.mark.needs("fusermount3", "unshare", "openssl", root=True)]


@pytest.mark.usefixtures("batch")
class TestGbatch(SchedulerContract):
    does_not_apply: ClassVar = {
        "test_only_the_user_can_read_what_may_be_secret": (
            "objects have no modes: who may read a bucket is its owner's to say"
        ),
        "test_a_late_end_of_a_lost_job_changes_nothing": (
            "an attempt that was given up uploads nothing more, so its end is not seen; that it "
            "changes nothing is tried in tests/core/wrapper/test_wrapper_mount.py"
        ),
    }
    deadline_s = 100.0
    many = 16
    bulk = False

    def make_scheduler(self, workdir, **keywords):
        scheduler = GbatchScheduler(
            workdir,
            project="project",
            location="here",
            client_options=json.loads(os.environ["GBATCH_TEST_OPTIONS"]),
            bulk=self.bulk,
            **keywords,
        )
        scheduler.upload_interval_s = 0.1
        return scheduler

    def tune(self, scheduler):
        super().tune(scheduler)
        scheduler.kill_timeout_s = 20.0

    def make_workdir(self, tmp_path, name):
        return f"gs://bucket/{uuid.uuid4().hex}/{name}"

    def read(self, job, name):
        return _clouds.get(f"{job.metadir}/{name}")


@pytest.mark.usefixtures("batch")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bulk", [False, True], ids=["one by one", "in bulk"])
def test_drivers_that_are_killed_lose_and_double_nothing(tmp_path, seed, request, capsys, bulk):
    """A sample; `--kills=80` kills 20 at random and 5 at each edge."""
    kills = request.config.option.kills // 4
    contract = TestGbatch()
    contract.bulk = bulk
    report = run_chaos(contract, tmp_path, kills=kills, hits=kills // 4, n_jobs=8, seed=seed)
    with capsys.disabled():
        sys.stdout.write(f"\n{report}\n")
    report.check()
