"""What each backend must do with a workdir in a cloud that its jobs do not see mounted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stores

from xqute import JobOutcome, _clouds
from xqute.testing import Rig, SchedulerContract, bash

__all__ = ["InBucket", "check_staging", "open_store"]

#: Waits for a file that nobody makes before its first driver is dead.
_OUTLIVES = bash(
    'echo run >>"$XQUTE_JOB_METADIR/runs"\n'
    "until [[ -e $XQUTE_JOB_METADIR/go ]]; do sleep 0.05; done\n"
    "echo lived"
)
_FAILS_ONCE = bash('echo "trial $XQUTE_JOB_TRIAL"; exit $((XQUTE_JOB_TRIAL ? 0 : 5))')


@contextlib.contextmanager
def open_store(scheme: str, folder: Path) -> Iterator[Callable[[], int]]:
    """Start a store, and have this process's environment name it; give what counts requests.

    What is kept on this machine is kept in the folder. Where the store's server is not installed
    the test is skipped; in CI it fails.
    """
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        try:
            n_requests = stack.enter_context(stores.store(scheme, folder, patch.setenv))
        except stores.NotHereError as exc:
            if os.environ.get("CI") == "true":
                raise
            pytest.skip(str(exc))
        patch.setattr(_clouds, "_buckets", {})
        # Servers have found what is in the user's cache by now: jobs' files go elsewhere.
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield n_requests


class InBucket(SchedulerContract):
    """What backends say of themselves for `check_staging`."""

    def make_workdir(self, tmp_path: Path, name: str) -> str:
        """Give a folder of a bucket."""
        return f"gs://bucket/{uuid.uuid4().hex}/{name}"


async def check_staging(contract: InBucket, tmp_path: Path) -> None:
    """Run jobs, and let a driver die, with a workdir in Google's store that no job sees.

    Args:
        contract: Makes the scheduler; its jobs, and this process, may write below `tmp_path`.
        tmp_path: Where staging folders are.
    """
    with open_store("gs", tmp_path):
        await _check_files(Rig(contract, tmp_path))
        await _check_resume(Rig(contract, tmp_path))


def _get(job, name):
    return _clouds.get(f"{job.metadir}/{name}")


async def _check_files(rig):
    """Successes, failures and retries have their files in the bucket, and none here."""
    commands = [bash("echo out; echo err >&2"), bash("echo sad; exit 3"), _FAILS_ONCE]
    jobs = await rig.run(*commands, forks=3, error_strategy="retry", num_retries=1)
    fine, failed, flaky = jobs
    assert [job.outcome for job in jobs] == [
        *(JobOutcome.SUCCEEDED, JobOutcome.FAILED, JobOutcome.SUCCEEDED)
    ]
    assert [job.rc for job in jobs] == [0, 3, 0]
    assert (_get(fine, "job.stdout"), _get(fine, "job.stderr")) == (b"out\n", b"err\n")
    assert (_get(fine, "job.rc"), _get(fine, "job.status")) == (b"0", b"6")
    assert (_get(failed, "job.rc"), _get(failed, "job.status")) == (b"3", b"7")
    assert _get(failed, "job.retry/0/job.stdout") == b"sad\n"
    assert (_get(flaky, "job.rc"), _get(flaky, "job.retry/0/job.rc")) == (b"0", b"5")
    assert (_get(flaky, "job.stdout"), _get(flaky, "job.retry/0/job.stdout")) == (
        *(b"trial 1\n", b"trial 0\n"),
    )
    assert _clouds.names(f"{rig.workdir}/.run/events") in ([], [""])
    assert not _has(fine.staging, ""), "nothing stays on this machine"


async def _check_resume(rig):
    """A job that ends when its driver is dead is adopted by the next, and its files uploaded."""
    with rig.driver(_OUTLIVES) as driver:
        await asyncio.to_thread(driver.expect, "started", 0)
    job = rig.scheduler().create_job(0, _OUTLIVES)
    folder = _shared_folder(job)
    await rig.until(lambda: _has(folder, "runs"), "the job runs")
    assert _get(job, "job.stdout") is None
    _make(folder, "go")
    [job] = await rig.run(_OUTLIVES, resume=True)
    assert (job.outcome, job.rc, job.adopted) == (JobOutcome.SUCCEEDED, 0, True)
    assert (_get(job, "job.stdout"), _get(job, "job.rc")) == (b"lived\n", b"0")
    # What a job writes by itself stays on a server that shares nothing with this machine.
    runs = _read(folder, "runs") if _has(folder, "runs") else _get(job, "runs")
    assert runs == b"run\n"


def _shared_folder(job):
    """Where the job has its folder, as this process sees it."""
    there = str(job.metadir.mounted)
    return there if os.path.isdir(there) else job.local_dir


def _has(folder, name):
    return os.path.exists(f"{folder}/{name}")


def _read(folder, name):
    return Path(folder, name).read_bytes()


def _make(folder, name):
    Path(folder, name).touch()
