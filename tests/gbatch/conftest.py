"""What the tests of gbatch share: a store and a Batch service, started once a session."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path

import pytest

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
def batch(store_url, tmp_path_factory):
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


_numbers = itertools.count()


@pytest.fixture
def make_workdir():
    """Give a new folder of the bucket."""
    return lambda name="workdir": f"gs://bucket/tests/{next(_numbers)}/{name}"
