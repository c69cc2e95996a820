"""xqute on a Grid Engine, measured beside one bare `qsub -t`: `python benchmarks/sge.py`.

Uses the Grid Engine of the environment, or with --own starts one (`tests/services/sge`). Counts
every call of its programs, through shims on PATH. Exit code 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from clusters import Calls, compare_pairs, time_pairs
from ends import Ends
from measuring import folder_of_service, probe_files_us
from reporting import Figure, Section, Target, render_section

from xqute import JobOutcome, Xqute
from xqute.testing import bash, until

SERVICE = Path(__file__).parents[1] / "tests" / "services" / "sge"
PROGRAMS = ("qsub", "qstat", "qdel", "qacct", "qalter")
BARE = "qsub -terse -S /bin/bash -wd / -o /dev/null -j y"


async def run(
    folder: Path, commands: list[list[str]], forks: int, ends: Ends | None = None
) -> float:
    """Run commands to their end; give the seconds that it took."""
    began_s = time.perf_counter()
    plugins = [ends] if ends else None
    async with Xqute("sge", workdir=folder, forks=forks, plugins=plugins) as xq:
        for command in commands:
            await xq.feed(command)
    took_s = time.perf_counter() - began_s
    failed = [job for job in xq.jobs if job.outcome != JobOutcome.SUCCEEDED]
    if failed:
        sys.exit(f"{len(failed)} jobs did not succeed: {failed[0]!r}: {failed[0].reason}")
    return took_s


def run_bare(folder: Path, n_jobs: int) -> float:
    """Run `true` as one array; give the seconds until the last task has left its empty file."""
    ends = folder / "ends"
    ends.mkdir(parents=True)
    script = folder / "bare.sh"
    script.write_text(f'true\n: >"{ends}/$SGE_TASK_ID"\n')
    began_s = time.perf_counter()
    argv = [*BARE.split(), "-t", f"1-{n_jobs}", str(script)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    while len(os.listdir(ends)) < n_jobs:
        time.sleep(0.05)
    return time.perf_counter() - began_s


def throughput(folder: Path, calls: Calls, n_jobs: int, rounds: int) -> Section:
    """Many jobs of `true` beside the bare array, in turns."""
    counts = []

    def run_all(number: int) -> float:
        with calls.counted() as counter:
            took_s = asyncio.run(run(folder / f"all{number}", [["true"]] * n_jobs, n_jobs))
        counts.append(counter)
        return took_s

    pairs = time_pairs(folder, rounds, lambda n: run_bare(folder / f"bare{n}", n_jobs), run_all)
    qstats = [60 * c["qstat"] / pair.xqute_s for c, pair in zip(counts, pairs, strict=True)]
    rows = [
        *compare_pairs(pairs),
        Figure.of_median("qsub calls", "", [float(c["qsub"]) for c in counts]),
        Figure.of_median("qstat calls a minute", "", qstats),
    ]
    section = Section("throughput", f"{n_jobs} jobs of true, {rounds} rounds", [*rows])
    section.aim(
        {
            "xqute - 1.05 x bare": Target("<=", 1),
            "qsub calls": Target("<=", 5),
            "qstat calls a minute": Target("<=", 7),
        }
    )
    return section


def few(folder: Path, calls: Calls, n_jobs: int) -> Section:
    """The same jobs where few may be in the queue at once."""
    with calls.counted() as counter:
        took_s = asyncio.run(run(folder / "few", [["true"]] * n_jobs, n_jobs // 10))
    section = Section("few", f"{n_jobs} jobs of true, forks={n_jobs // 10}")
    section.rows.append(Figure.of_median("xqute", "s", [took_s]))
    section.rows.append(Figure.of_median("qsub calls", "", [float(counter["qsub"])]))
    section.aim({"qsub calls": Target("<=", 25)})
    return section


def latency(folder: Path, n_jobs: int) -> Section:
    """From the end of a command to its hook."""
    ends = Ends()
    command = bash('printf %s "$EPOCHREALTIME"')
    asyncio.run(run(folder / "latency", [command] * n_jobs, n_jobs, ends))
    late_ms = [
        1000 * (told_s - float((folder / "latency" / str(index) / "job.stdout").read_text()))
        for index, told_s in ends.told_s.items()
    ]
    section = Section("latency", "from the end of a command to on_job_succeeded")
    section.rows.append(Figure.of_median("median", "ms", late_ms))
    section.rows.append(Figure.of_quantile("95 %", "ms", 0.95, [late_ms]))
    section.aim({"median": Target("<=", 50)})
    return section


async def watch(
    folder: Path, calls: Calls, commands: list[list[str]], seconds: float
) -> dict[str, float]:
    """Submit commands, let them run for so long, cancel them; give the calls a minute meanwhile."""
    async with Xqute("sge", workdir=folder, forks=len(commands)) as xq:
        for command in commands:
            await xq.feed(command)
        await until(lambda: xq.jobs[-1].jid is not None, "all are submitted", 60)
        began_s = time.perf_counter()
        with calls.counted() as counter:
            await asyncio.sleep(seconds)
        took_s = time.perf_counter() - began_s
        xq.cancel()
    return {name: 60 * n_calls / took_s for name, n_calls in counter.items()}


def pace(folder: Path, calls: Calls, seconds: int) -> Section:
    """How often the queue is asked about jobs that take long, by their number."""
    section = Section("pace", "calls a minute while jobs run (qalter: once for each submission)")
    for n_jobs in (10, 100, 1000):
        commands = [["sleep", str(seconds)]] * n_jobs
        rates = asyncio.run(watch(folder / f"pace{n_jobs}", calls, commands, seconds - 5))
        for name, rate in rates.items():
            section.rows.append(Figure.of_median(f"{n_jobs} jobs: {name}", "", [rate]))
    return section


@contextmanager
def own_cell(slots: int) -> Iterator[None]:
    """A Grid Engine for this run alone."""
    ports = []
    sockets = [socket.socket() for _ in range(2)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
        ports.append(str(one.getsockname()[1]))
    for one in sockets:
        one.close()
    with folder_of_service() as folder:
        folder.chmod(0o755)
        try:
            # What is in the profile of whoever runs this is not to be measured, a thousand times.
            env = {**os.environ, "SGE_TEST_SLOTS": str(slots), "SGE_TEST_LOGIN_SHELLS": "csh"}
            subprocess.run([SERVICE / "start.sh", folder, *ports], check=True, env=env)
            for word in (folder / "env.sh").read_text().replace("export ", "").split():
                name, _, value = word.partition("=")
                os.environ[name] = os.path.expandvars(value)
            yield
        finally:
            subprocess.run([SERVICE / "stop.sh", folder], check=True)


def main() -> int:
    """Measure, print, and give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--own", action="store_true", help="start a Grid Engine for this run")
    parser.add_argument("--slots", type=int, default=40, help="of its own one")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pace", type=int, default=35, help="seconds of watching, each time")
    parser.add_argument("--only", choices=("throughput", "few", "latency", "pace"), action="append")
    options = parser.parse_args()
    if not options.own and shutil.which("qsub") is None:
        parser.error("there is no qsub: source Grid Engine's settings.sh, or use --own")
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, load {os.getloadavg()[0]:.2f}"
    )
    sections = []
    cell = own_cell(options.slots) if options.own else nullcontext()
    # One folder for all rounds, removed at the end: after a removal ext4 makes files slowly.
    with cell, tempfile.TemporaryDirectory(prefix="xqute-bench-") as made:
        folder = Path(made)
        print(f"in {folder.parent} a folder with a file costs {probe_files_us(folder):.0f} us")
        calls = Calls(folder, PROGRAMS)
        steps: dict[str, Callable[[], Section]] = {
            "throughput": lambda: throughput(folder, calls, options.jobs, options.rounds),
            "few": lambda: few(folder, calls, options.jobs),
            "latency": lambda: latency(folder, min(options.jobs, 100)),
            "pace": lambda: pace(folder, calls, options.pace),
        }
        for name in options.only or steps:
            sections.append(steps[name]())
            print(f"\n{render_section(sections[-1])}", flush=True)
    print(f"load at the end {os.getloadavg()[0]:.2f}")
    return int(any(section.missed for section in sections))


if __name__ == "__main__":
    sys.exit(main())
