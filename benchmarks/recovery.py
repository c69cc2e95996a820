"""The benchmark of what it takes to come back, and of what it costs to be able to."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

from bench import fill
from measuring import run_driver
from peers import DRIVERS
from reporting import Figure, Section, Target

if TYPE_CHECKING:
    from bench import Bench

FORKS = 2


def recovery(bench: Bench) -> Section:
    """How long a run of jobs that have all ended takes to resume, and what the journal costs.

    "Resume" is from before the first feed until each job is adopted, in a process of its own with
    the local scheduler; each round begins with the same journal. "Reading" is the journal alone,
    which is a part of that. The speed with the journal over the speed without it is that of `true`
    with the local scheduler, in pairs of runs, one after the other.
    """
    sizes = bench.sizes
    many = sizes.many_jobs

    def resume() -> tuple[float, list[dict[str, Any]]]:
        folder = bench.new_folder()
        script = DRIVERS / "xqute_resume.py"
        bench.tell("recovery, preparing")
        made, _ = run_driver(sys.executable, script, "--jobs", many, "--prepare", cwd=folder)
        before = bench.new_folder() / "run"
        shutil.copytree(folder / "jobs" / ".run", before)
        results = []
        for number in range(1, sizes.long_rounds + 1):
            bench.tell(f"recovery, round {number}: resume")
            results.append(run_driver(sys.executable, script, "--jobs", many, cwd=folder)[0])
            shutil.rmtree(folder / "jobs" / ".run")
            shutil.copytree(before, folder / "jobs" / ".run")
        return made["journal_b"] / many, results

    def run(*options: str) -> float:
        arguments = ("--forks", FORKS, "--jobs", sizes.jobs, *options)
        seconds: float = bench.drive("xqute_jobs.py", *arguments)["seconds"]
        return seconds

    def measure() -> list[Figure]:
        size_b, results = resume()
        pairs = [(run(), run("--no-journal")) for _ in range(sizes.rounds)]
        ratios = [theirs / ours for ours, theirs in pairs]
        return [
            Figure.of_median("resume", "s", [each["seconds"] for each in results]),
            Figure.of_median("resume, CPU", "s", [each["cpu_s"] for each in results]),
            Figure.of_median("reading", "s", [each["read_s"] for each in results]),
            Figure.of_median("journal", "B/job", [size_b]),
            Figure.of_median("with journal", "jobs/s", [sizes.jobs / ours for ours, _ in pairs]),
            Figure.of_median("without", "jobs/s", [sizes.jobs / theirs for _, theirs in pairs]),
            Figure.of_median("with / without", "times", ratios),
        ]

    title = f"resume of {many:,} ended jobs; `true` with and without a journal, forks={FORKS}"
    targets = {
        "resume": Target("<=", 2),
        "journal": Target("<=", 300),
        "with / without": Target(">=", 0.95),
    }
    return fill(Section("recovery", title), targets, measure)
