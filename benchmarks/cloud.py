"""Workdirs in a cloud and Google Cloud Batch, over emulators: `python benchmarks/cloud.py`.

Prints what was measured beside its target; exit code 1 if a measurement failed, and with --strict
if a target was missed. Needs root and what tests/services installs. Azure is measured where AZURITE
names the emulator's blob server.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypeVar

from measuring import Samples

from xqute import Job, JobStatus, Scheduler, Xqute, _clouds, _protocol
from xqute.testing import until

ROOT = Path(__file__).resolve().parents[1]
N_JOBS, N_CHANGES, N_POLLS = 1000, 10, 20
MAX_REQUESTS, MAX_LAG_MS, MAX_RATIO = 3, 10.0, 1.5

T = TypeVar("T")


def load(path: Path) -> ModuleType:
    """Import a file of the tests."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


service = load(ROOT / "tests" / "services" / "gbatch" / "running.py")
stores = load(ROOT / "tests" / "services" / "stores.py")


async def with_lag(work: Awaitable[T]) -> tuple[T, float]:
    """Give what something gives, and the p99 of how late the event loop was meanwhile, in ms."""
    lags: list[float] = []

    async def measure() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append((time.perf_counter() - began_s - 0.001) * 1000)

    measuring = asyncio.create_task(measure())
    try:
        return await work, Samples(tuple(lags)).quantile(0.99)
    finally:
        measuring.cancel()


#: Stay: a thread's first use of Google's client has requests of its own, later.
_tellers = ThreadPoolExecutor(4)


class Mounted(Scheduler):
    """Has jobs that see the bucket, and tell of themselves what the benchmark says."""

    name = "mounted"
    upload_interval_s = 10.0

    async def submit_job(self, job: Job) -> int | str:
        """Give it an id."""
        return f"native-{job.index}"

    async def kill_job(self, job: Job) -> None:
        """Nothing is killed."""
        raise NotImplementedError

    async def job_is_running(self, job: Job) -> bool:
        """They run."""
        return True

    def tell(self, jobs: Iterable[Job], status: JobStatus) -> None:
        """Leave the events of jobs in the bucket, as their wrappers do. Blocks."""
        rc = -1 if status is JobStatus.RUNNING else 0

        def put(job: Job) -> None:
            event = _protocol.Event(
                job.index, 0, 0, status, rc, time.time_ns() // 1_000_000, self.run_id
            )
            _clouds.put(f"{self.workdir}/.run/events/{_protocol.event_name(event)}", b"")

        list(_tellers.map(put, jobs))


class Polled(NamedTuple):
    """What it cost to hear of N_CHANGES ends among N_JOBS running jobs."""

    n_requests: float  # all that the run has made meanwhile, for each time
    took_ms: float
    lag_ms: float
    lag_before_ms: float  # when the jobs were submitted and begun


async def poll(scheme: str, n_requests: Callable[[], int]) -> Polled:
    """Have 1,000 jobs run, and 10 of them end, N_POLLS times."""
    async with Xqute(Mounted, workdir=f"{scheme}://bucket/bench", forks=N_JOBS) as xq:
        scheduler = xq.scheduler
        assert isinstance(scheduler, Mounted)
        took_ms: list[float] = []

        async def begin() -> None:
            jobs = [await xq.feed(["true"]) for _ in range(N_JOBS)]
            await until(lambda: all(job.jid is not None for job in jobs), "all run", 300)
            await asyncio.to_thread(scheduler.tell, jobs, JobStatus.RUNNING)
            is_known = lambda: all(job.status is JobStatus.RUNNING for job in jobs)  # noqa: E731
            await until(is_known, "that is known", 300)
            await asyncio.sleep(3)  # and is in the journal

        async def change() -> None:
            for start in range(0, N_POLLS * N_CHANGES, N_CHANGES):
                some = xq.jobs[start : start + N_CHANGES]
                await asyncio.to_thread(scheduler.tell, some, JobStatus.FINISHED)
                began_s = time.perf_counter()
                await asyncio.gather(*[job.wait() for job in some])
                took_ms.append((time.perf_counter() - began_s) * 1000)

        _, lag_before_ms = await with_lag(begin())
        before = n_requests()
        _, lag_ms = await with_lag(change())
        n_ours = n_requests() - before - N_POLLS * N_CHANGES
        await xq.detach()
    return Polled(n_ours / N_POLLS, statistics.median(took_ms), lag_ms, lag_before_ms)


@contextlib.contextmanager
def batch(folder: Path) -> Iterator[object]:
    """Give a Batch service over a store, as the environment of this process has them."""
    with (
        service.bucket_store(folder) as url,
        service.batch_service(folder, url, "--vms=8") as found,
    ):
        os.environ["STORAGE_EMULATOR_HOST"] = url
        os.environ["GOOGLE_CLOUD_PROJECT"] = "project"
        os.environ["GOOGLE_APPLICATION_CREDENTIALS"] = found.key
        os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"] = found.roots
        yield found


async def run_with_xqute(found: object, n_jobs: int) -> float:
    """Give the seconds for so many tiny jobs."""
    opts = {
        "project": "project",
        "location": "here",
        "client_options": found.options,  # type: ignore[attr-defined]
    }
    began_s = time.perf_counter()
    async with Xqute("gbatch", workdir="gs://bucket/x", scheduler_opts=opts, forks=64) as xq:
        for _ in range(n_jobs):
            await xq.feed(["true"])
    assert all(job.rc == 0 for job in xq.jobs), "a job failed"
    return time.perf_counter() - began_s


async def run_by_hand(found: object, n_jobs: int) -> float:
    """Give the seconds in which the service itself runs the same scripts: the least there is."""
    from xqute_gbatch import GbatchScheduler
    from xqute_gbatch.client import check_message

    scheduler = GbatchScheduler(
        "gs://bucket/x",
        project="project",
        location="here",
        client_options=found.options,  # type: ignore[attr-defined]
    )
    jobs = [scheduler.create_job(index, ["true"]) for index in range(n_jobs)]
    scripts = [(job, scheduler.wrap_job_script(job)) for job in jobs]

    def upload() -> None:
        for job, script in scripts:
            job.write_file("job.wrapped.gbatch", script)
        _clouds.put("gs://bucket/x/.run/events/", b"")

    await asyncio.to_thread(upload)
    async with scheduler:
        client = scheduler._connect()
        began_s = time.perf_counter()
        room = asyncio.Semaphore(8)

        async def create(number: int) -> None:
            message = check_message(scheduler.build_message(jobs[number]))
            async with room:
                await client.create(f"by-hand-{number}", "by-hand", message)

        await asyncio.gather(*map(create, range(n_jobs)))
        while True:
            states = found.ask("states")  # type: ignore[attr-defined]
            mine = [state for name, state in states.items() if name.startswith("by-hand-")]
            if mine.count("SUCCEEDED") == n_jobs:
                return time.perf_counter() - began_s
            assert "FAILED" not in mine, "a job failed"
            await asyncio.sleep(0.05)


class Pair(NamedTuple):
    """What so many tiny jobs have taken the service alone, and with xqute."""

    alone_s: float
    took_s: float
    lag_ms: float  # with xqute
    machine_lag_ms: float  # of an event loop that has nothing to do, at the same time


def measure(run: Callable[[object, int], Awaitable[float]], n_jobs: int) -> tuple[float, float]:
    """Give the seconds that a run takes over a store and a service of its own, and the lag."""
    import google.cloud.batch_v1
    import google.cloud.storage  # noqa: F401  # neither way pays for that

    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder, batch(Path(folder)) as found:
        return asyncio.run(with_lag(run(found, n_jobs)))


def compare(n_jobs: int) -> Pair:
    """Run the jobs both ways, and measure the lag both times: that takes processor time.

    Each over a store of its own: the emulator looks through all of its objects for each listing, so
    that the second would find it slower than the first. And in a process of its own: gRPC keeps the
    certificates of the first service that it has met.
    """
    alone, _ = asyncio.run(with_lag(in_process(run_by_hand, n_jobs)))
    took, machine_lag_ms = asyncio.run(with_lag(in_process(run_with_xqute, n_jobs)))
    return Pair(alone[0], *took, machine_lag_ms)


async def in_process(
    run: Callable[[object, int], Awaitable[float]], n_jobs: int
) -> tuple[float, float]:
    """Give what `measure` gives in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return await asyncio.get_running_loop().run_in_executor(process, measure, run, n_jobs)


def tell(what: str, value: str, target: str, *, kept: bool) -> bool:
    """Print one line; give whether the target was kept."""
    print(f"{what:<48} {value:>14}   {target:<14} {'' if kept else 'MISSED'}", flush=True)
    return kept


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="how often the jobs run both ways")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    kept = True
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}, Python {sys.version.split()[0]}")
    with tempfile.TemporaryDirectory() as scratch:
        for scheme in ("gs", "s3", "az"):
            folder = Path(scratch) / scheme
            folder.mkdir()
            try:
                with stores.store(scheme, folder, os.environ.__setitem__) as n_requests:
                    cost = asyncio.run(poll(scheme, n_requests))
            except stores.NotHereError as exc:
                kept = tell(f"{scheme}: {exc}", "-", "", kept=False)
                continue
            what = f"{scheme}: {N_JOBS} jobs, {N_CHANGES} changes"
            is_kept = cost.n_requests <= MAX_REQUESTS
            kept &= tell(
                f"{what}: requests", f"{cost.n_requests:.1f}", f"<= {MAX_REQUESTS}", kept=is_kept
            )
            tell(f"{what}: time", f"{cost.took_ms:.1f} ms", "", kept=True)
            is_kept = cost.lag_ms <= MAX_LAG_MS
            kept &= tell(f"{what}: lag p99", f"{cost.lag_ms:.2f} ms", "<= 10 ms", kept=is_kept)
            tell(f"{what}: lag at submission", f"{cost.lag_before_ms:.2f} ms", "", kept=True)
    pairs = [compare(options.jobs) for _ in range(options.rounds)]
    alone_s, took_s, lag_ms, machine_lag_ms = map(statistics.median, zip(*pairs, strict=True))
    ratio = statistics.median(pair.took_s / pair.alone_s for pair in pairs)
    what = f"gbatch: {options.jobs} tiny jobs"
    tell(f"{what}: the service alone", f"{alone_s:.2f} s", "", kept=True)
    tell(f"{what}: with xqute", f"{took_s:.2f} s", "", kept=True)
    kept &= tell(f"{what}: ratio", f"{ratio:.2f}", f"<= {MAX_RATIO}", kept=ratio <= MAX_RATIO)
    is_kept = lag_ms <= MAX_LAG_MS
    kept &= tell(f"{what}: lag p99", f"{lag_ms:.2f} ms", "<= 10 ms", kept=is_kept)
    tell(f"{what}: lag p99 of an idle loop", f"{machine_lag_ms:.2f} ms", "", kept=True)
    return int(options.strict and not kept)


if __name__ == "__main__":
    sys.exit(main())
