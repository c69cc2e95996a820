"""What the tests of gbatch share: a store and a Batch service, started once a session."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import itertools
import json
from pathlib import Path

import pytest

from xqute import Xqute
from xqute_gbatch import GbatchScheduler

pytest.importorskip("google.cloud.batch_v1")
pytest.importorskip("mfusepy")

_SERVICE = Path(__file__).resolve().parents[1] / "services" / "gbatch" / "running.py"


def _load_service():
    spec = importlib.util.spec_from_file_location("gbatch_service", _SERVICE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def store_url(tmp_path_factory):
    """The URL of a bucket store; the SDK of this process, and of its children, uses it."""
    with (
        _load_service().bucket_store(tmp_path_factory.mktemp("store")) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        patch.setenv("GOOGLE_CLOUD_PROJECT", "project")
        patch.setenv("NO_GCE_CHECK", "true")
        yield url


@pytest.fixture(scope="session")
def batch_for_all(store_url, tmp_path_factory):
    """A Batch service; `make_scheduler` of the contract finds it through the environment."""
    folder = tmp_path_factory.mktemp("batch")
    with (
        _load_service().batch_service(folder, store_url) as service,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", service.roots)
        patch.setenv("GOOGLE_APPLICATION_CREDENTIALS", service.key)
        patch.setenv("GBATCH_TEST_OPTIONS", json.dumps(service.options))
        yield service


@pytest.fixture
def batch(batch_for_all):
    """The Batch service, in which nothing goes wrong yet, and no calls are counted."""
    batch_for_all.ask("heal")
    yield batch_for_all
    batch_for_all.ask("heal")


_numbers = itertools.count()


@pytest.fixture
def make_workdir():
    """Give a new folder of the bucket."""
    return lambda name="workdir": f"gs://bucket/tests/{next(_numbers)}/{name}"


@pytest.fixture
def make_scheduler(batch, make_workdir):
    """Make a scheduler of the service that waits for nothing longer than it must."""

    def make(workdir=None, **keywords):
        settings = {"project": "project", "location": "here", "client_options": batch.options}
        scheduler = GbatchScheduler(workdir or make_workdir(), **{**settings, **keywords})
        scheduler.kill_grace_s = 1.0
        scheduler.kill_timeout_s = 20.0
        scheduler.recheck_interval = 0.3
        scheduler.first_recheck_s = 0.1
        scheduler.lost_grace_s = 0.4
        scheduler.upload_interval_s = 0.2
        return scheduler

    return make


@pytest.fixture
def running(make_scheduler, make_workdir):
    """Run jobs over such a scheduler; `opts` are its own."""

    @contextlib.asynccontextmanager
    async def run(workdir=None, **keywords):
        opts = keywords.pop("opts", {})

        class Tuned(GbatchScheduler):
            def __new__(cls, workdir, **given):
                return make_scheduler(workdir, **given)

        workdir = workdir or make_workdir()
        async with asyncio.timeout(90):
            async with Xqute(Tuned, workdir=workdir, scheduler_opts=opts, **keywords) as xq:
                yield xq

    return run
