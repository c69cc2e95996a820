"""The benchmarks of xqute alone, and the list of all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from bench import fill, lag_figures
from recovery import recovery
from reporting import Figure, Section, Target
from throughput import throughput

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench import Bench

SLEEP_FORKS = 16
SLEEP_S = 0.5
MEMORY_FORKS = 100


def latency(bench: Bench) -> Section:
    """How long one job alone takes, in ms, from before its feed until its end is known.

    Local scheduler, `true`, nothing else running, the next job only after the last has ended. "In a
    running Xqute": it is kept feeding, and the job is awaited. "In an Xqute of its own": each job
    has one, over an empty folder, and `run_until_complete` is awaited.
    """
    sizes = bench.sizes
    count = sizes.rounds * sizes.latency_jobs
    kinds = {"kept_ms": "in a running Xqute", "fresh_ms": "in an Xqute of its own"}
    fractions = {"p50": 0.5, "p99": 0.99}

    def measure() -> list[Figure]:
        results = [
            bench.drive("xqute_latency.py", "--samples", sizes.latency_jobs)
            for _ in range(sizes.rounds)
        ]
        return [
            Figure.of_quantile(f"{kind}, {name}", "ms", part, [each[key] for each in results])
            for key, kind in kinds.items()
            for name, part in fractions.items()
        ]

    section = Section("latency", f"one job alone, feed to end, {count} jobs of each kind")
    limits_ms = {"p50": 15, "p99": 30}
    targets = {
        f"{kind}, {name}": Target("<=", limit_ms)
        for kind in kinds.values()
        for name, limit_ms in limits_ms.items()
    }
    return fill(section, targets, measure)


def sleeping(bench: Bench) -> Section:
    """Wall time of 200 x `sleep 0.5` with forks=16, over the ideal one.

    Ideal is ceil(200 / 16) x 0.5 s: nothing but the sleeping. From the first feed until
    `run_until_complete` returned.
    """
    jobs = bench.sizes.sleeping_jobs
    ideal_s = math.ceil(jobs / SLEEP_FORKS) * SLEEP_S
    command = f"sleep {SLEEP_S}"

    def measure() -> list[Figure]:
        options = ("--forks", SLEEP_FORKS, "--jobs", jobs, "--command", command)
        took_s = [
            bench.drive("xqute_jobs.py", *options)["seconds"]
            for _ in range(bench.sizes.long_rounds)
        ]
        ratios = [seconds / ideal_s for seconds in took_s]
        return [
            Figure.of_median("wall time", "s", took_s),
            Figure.of_median("wall time / ideal", "times", ratios),
        ]

    title = f"{jobs} x `{command}`, forks={SLEEP_FORKS}, ideal {ideal_s:g} s"
    return fill(Section("sleep", title), {"wall time / ideal": Target("<=", 1.05)}, measure)


def engine(bench: Bench) -> Section:
    """The engine alone: few and many jobs of the in-memory scheduler.

    Jobs/s and cost a job are from the first feed until `run_until_complete` returned, with a lag
    sampler beside it all the time (200 calls/s, below 1 % of the time). The cost's ratio is that of
    wall time a job in the same round. Job folders are in memory (/dev/shm), too.

    Lag is how late the loop makes a call that is asked for every 5 ms. By time: at 99 % of all
    moments it would have answered within so long; a block of 50 ms is one late call, but ten times
    5 ms in which nothing was answered.

    Memory is what one job adds to a process of its own: waiting, when all are fed, 100 held back
    by a hook and the others behind them; done, when all have ended and are still in `Xqute.jobs`.
    "Resident" is the process's, "allocated" what Python has allocated, by tracemalloc.
    """
    sizes = bench.sizes
    few, many = sizes.few_jobs, sizes.many_jobs

    def run(jobs: int) -> dict[str, Any]:
        options = ("--scheduler", "memory", "--forks", MEMORY_FORKS, "--jobs", jobs, "--lag")
        return bench.drive("xqute_jobs.py", *options, files_in_memory=True)

    def hold(*options: str) -> dict[str, Any]:
        return bench.drive("xqute_memory.py", "--jobs", many, *options, files_in_memory=True)

    def measure() -> list[Figure]:
        runs = [(run(few), run(many)) for _ in range(sizes.long_rounds)]
        resident = [hold() for _ in range(sizes.long_rounds)]
        allocated = [hold("--trace")]
        few_s = [each["seconds"] / few for each, _ in runs]
        many_s = [each["seconds"] / many for _, each in runs]
        ratios = [ours / theirs for ours, theirs in zip(many_s, few_s, strict=True)]
        return [
            Figure.of_median("few jobs", "jobs/s", [1 / seconds for seconds in few_s]),
            Figure.of_median("many jobs", "jobs/s", [1 / seconds for seconds in many_s]),
            Figure.of_median("cost of a job, many / few", "times", ratios),
            *lag_figures([each for each, _ in runs], "few jobs"),
            *lag_figures([each for _, each in runs], "many jobs"),
            _memory("resident, waiting", "waiting_b", resident),
            _memory("resident, done", "done_b", resident),
            _memory("allocated, waiting", "waiting_b", allocated),
            _memory("allocated, done", "done_b", allocated),
        ]

    title = f"the engine alone: {few:,} and {many:,} in-memory jobs, forks={MEMORY_FORKS}"
    targets = {
        "few jobs": Target(">=", 5000),
        "many jobs": Target(">=", 5000),
        "cost of a job, many / few": Target("<=", 1.3),
        "lag p99, few jobs": Target("<=", 10),
        "lag p99, many jobs": Target("<=", 10),
        "resident, waiting": Target("<=", 2048),
        "resident, done": Target("<=", 2048),
        "allocated, waiting": Target("<=", 2048),
        "allocated, done": Target("<=", 2048),
    }
    return fill(Section("engine", title), targets, measure)


def _memory(name: str, key: str, results: list[dict[str, Any]]) -> Figure:
    return Figure.of_median(name, "B/job", [each[key] for each in results])


def importing(bench: Bench) -> Section:
    """What `import xqute` adds to `import asyncio, simplug`, in ms of wall and of CPU time.

    Each sample is an interpreter of its own that imports asyncio and simplug, looks at the clocks,
    and then imports xqute; so both parts are of the same process. One sample before the first that
    counts writes the bytecode.
    """
    count = bench.sizes.imports
    names = {
        "base_wall": "asyncio, simplug, wall",
        "base_cpu": "asyncio, simplug, CPU",
        "xqute_wall": "xqute, wall",
        "xqute_cpu": "xqute, CPU",
    }

    def measure() -> list[Figure]:
        samples = [bench.drive("import_time.py") for _ in range(count + 1)][1:]
        return [
            Figure.of_median(name, "ms", [sample[key] for sample in samples])
            for key, name in names.items()
        ]

    section = Section("import", f"`import xqute` after `import asyncio, simplug`, {count} times")
    targets = {names[key]: Target("<=", 30) for key in ("xqute_wall", "xqute_cpu")}
    return fill(section, targets, measure)


SECTIONS: dict[str, Callable[[Bench], Section]] = {
    "throughput": throughput,
    "latency": latency,
    "sleep": sleeping,
    "engine": engine,
    "import": importing,
    "recovery": recovery,
}
