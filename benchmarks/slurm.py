"""xqute on a private Slurm of this machine: `python benchmarks/slurm.py` (root, slurm-wlm, munge).

Counts every call of Slurm's programs, through programs of the same names that stand before them on
PATH. Prints one table. Exit code 1 with --strict if a target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clusters import Calls, compare_pairs, time_pairs
from ends import Ends
from measuring import folder_of_service, probe_files_us
from reporting import Figure, Section, Target, render_section

from xqute import Xqute

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE = Path(__file__).resolve().parents[1] / "tests" / "services" / "slurm"
PROGRAMS = ("sbatch", "squeue", "scancel", "sacct", "scontrol")


@contextmanager
def private_slurm(folder: Path, cpus: int) -> Iterator[None]:
    """Run a Slurm of two nodes, each with so many places."""
    env = os.environ | {"SLURM_CPUS": str(cpus), "SLURM_NODES": "2"}
    # It remembers ended jobs for minutes, and would take no more after five rounds.
    env["SLURM_EXTRA"] = "MaxJobCount=1000000"
    try:
        subprocess.run([SERVICE / "start", folder], check=True, env=env)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        yield
    finally:
        subprocess.run([SERVICE / "stop", folder], check=True)


def run_bare(folder: Path, n_jobs: int) -> float:
    """Seconds of one bare array of `true`, from its submission until the queue has none of it."""
    script = folder / "bare.sh"
    script.write_text("#!/bin/bash\nexec true\n")
    began_s = time.perf_counter()
    submit = ["sbatch", "--parsable", "-o", "/dev/null", f"--array=0-{n_jobs - 1}", str(script)]
    jid = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.strip()
    ask = ["squeue", "-h", "-t", "PD,R,CG", "-j", jid, "-o", "%A"]
    while subprocess.run(ask, check=True, capture_output=True).stdout:
        time.sleep(0.1)
    return time.perf_counter() - began_s


async def run_xqute(workdir: Path, n_jobs: int, forks: int) -> float:
    """Seconds of as many jobs of `true` through xqute, all successes."""
    began_s = time.perf_counter()
    async with Xqute("slurm", workdir=workdir, forks=forks) as xq:
        for _ in range(n_jobs):
            await xq.feed(["true"])
    took_s = time.perf_counter() - began_s
    assert [job.rc for job in xq.jobs] == [0] * n_jobs
    return took_s


async def measure_latency_ms(workdir: Path, n_jobs: int) -> list[float]:
    """Milliseconds from the end of a command to `on_job_succeeded`, a few jobs at a time."""
    ends = Ends()
    async with Xqute("slurm", workdir=workdir, forks=4, plugins=[ends]) as xq:
        for _ in range(n_jobs):
            await xq.feed(["bash", "-c", "sleep 0.2; echo $EPOCHREALTIME"])
    return [(ends.told_s[job.index] - float(job.stdout_file.read_text())) * 1000 for job in xq.jobs]


async def count_calls(workdir: Path, calls: Calls, n_jobs: int, for_s: float) -> tuple[int, int]:
    """Calls within `for_s` while so many jobs wait in the queue, and those to kill them all."""
    async with Xqute("slurm", workdir=workdir, forks=n_jobs, scheduler_opts={"hold": True}) as xq:
        for _ in range(n_jobs):
            await xq.feed(["true"])
        while any(job.submitted_at is None for job in xq.jobs):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        with calls.counted() as waiting:
            await asyncio.sleep(for_s)
        with calls.counted() as killing:
            xq.cancel()
            await xq.run_until_complete()
    return waiting["squeue"] + waiting["sacct"], killing.total()


def once(name: str, unit: str, value: float) -> Figure:
    """A figure that was measured once."""
    return Figure(name, unit, value, value, value)


def measure_pairs(folder: Path, calls: Calls, n_jobs: int, rounds: int) -> list[Figure]:
    """Time the bare array and xqute in turns, and count what xqute calls."""
    n_submissions, n_looks = [], []

    def run_all(number: int) -> float:
        with calls.counted() as counter:
            took_s = asyncio.run(run_xqute(folder / f"all{number}", n_jobs, n_jobs))
        n_submissions.append(float(counter["sbatch"]))
        # Of the first no interval has passed.
        n_looks.append(max(0, counter["squeue"] - 1) / max(took_s / 10, 1))
        return took_s

    pairs = time_pairs(folder, rounds, lambda _: run_bare(folder, n_jobs), run_all)
    return [
        *compare_pairs(pairs),
        Figure.of_median("its sbatch calls", "", n_submissions),
        Figure.of_median("its squeue calls per 10 s, but for the first", "", n_looks),
    ]


def measure(folder: Path, n_jobs: int, rounds: int, for_s: float) -> Section:
    """Measure everything."""
    calls = Calls(folder, PROGRAMS)
    section = Section("slurm", f"{n_jobs} jobs of true on a private Slurm")
    section.rows += measure_pairs(folder, calls, n_jobs, rounds)
    with calls.counted() as counter:
        took_s = asyncio.run(run_xqute(folder / "some", n_jobs, n_jobs // 10))
    section.rows += [
        once(f"xqute, forks={n_jobs // 10}", "s", took_s),
        once("its sbatch calls, again", "", counter["sbatch"]),
    ]
    latency_ms = asyncio.run(measure_latency_ms(folder / "latency", 60))
    median_ms = statistics.median(latency_ms)
    section.rows.append(once("end of a job to on_job_succeeded", "ms", median_ms))
    for n_waiting in (10, n_jobs // 10, n_jobs):
        found = asyncio.run(count_calls(folder / f"wait{n_waiting}", calls, n_waiting, for_s))
        section.rows += [
            once(f"calls a minute, {n_waiting} waiting", "", found[0] * 60 / for_s),
            once(f"calls to kill {n_waiting}", "", found[1]),
        ]
    section.aim(
        {
            "xqute - 1.05 x bare": Target("<=", 1),
            "its sbatch calls": Target("<=", 5),
            "its squeue calls per 10 s, but for the first": Target("<=", 1),
            "its sbatch calls, again": Target("<=", 25),
            "end of a job to on_job_succeeded": Target("<=", 50),
        }
    )
    return section


def main() -> int:
    """Run the benchmark and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    # With few places it is Slurm's clock that decides: it fills what is free once a second.
    parser.add_argument("--cpus", type=int, default=64, help="places of each of its two nodes")
    parser.add_argument("--rounds", type=int, default=3, help="of bare array and xqute, in turns")
    parser.add_argument("--seconds", type=float, default=30.0, help="of counting calls, each time")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    # One folder for all rounds, removed at the end: after a removal ext4 makes files slowly.
    with folder_of_service() as service, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"in {folder.parent} a folder with a file costs {probe_files_us(folder):.0f} us")
        with private_slurm(service, options.cpus):
            section = measure(folder, options.jobs, options.rounds, options.seconds)
    print(render_section(section))
    return 1 if options.strict and section.missed else 0


if __name__ == "__main__":
    sys.exit(main())
