"""What all benchmarks share: how much is measured, where, and what a missing xqute means."""

from __future__ import annotations

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import BenchmarkError, run_driver
from peers import DRIVERS, NotInstalledError, require_xqute
from reporting import Absent, Figure, Section, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured; `rounds` are interleaved, the numbers of jobs are for one round."""

    rounds: int
    long_rounds: int
    """Of what takes long: the sleeping jobs and the engine alone."""
    jobs: int
    public_jobs: int
    latency_jobs: int
    sleeping_jobs: int
    few_jobs: int
    many_jobs: int
    imports: int


FULL = Sizes(
    rounds=5,
    long_rounds=3,
    jobs=2000,
    public_jobs=8,
    latency_jobs=100,
    sleeping_jobs=200,
    few_jobs=10_000,
    many_jobs=100_000,
    imports=40,
)
QUICK = Sizes(
    rounds=2,
    long_rounds=1,
    jobs=300,
    public_jobs=4,
    latency_jobs=100,
    sleeping_jobs=64,
    few_jobs=2_000,
    many_jobs=20_000,
    imports=10,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """One session of benchmarks."""

    sizes: Sizes
    scratch: Path
    """A folder for the runs."""
    memory: Path
    """A folder that is in memory, if this machine has such a thing."""
    peers: Path
    """A folder for what peers need from run to run; made if it is missing."""
    tell: Callable[[str], None]
    """Hears what is going on."""

    def new_folder(self) -> Path:
        """Make an empty folder in `scratch`.

        It is not removed between runs: ext4 looks at each recently deleted inode before it makes a
        new one, so that a run after a removal would find files five to ten times as expensive.
        """
        return Path(tempfile.mkdtemp(dir=self.scratch))

    def drive(
        self, script: str, *arguments: str | float, files_in_memory: bool = False
    ) -> dict[str, Any]:
        """Run a driver of xqute in a folder of its own and return what it measured.

        Raises:
            BenchmarkError: It failed.
        """
        self.tell(" ".join(map(str, (script.removesuffix(".py"), *arguments))))

        def run(folder: Path) -> dict[str, Any]:
            return run_driver(sys.executable, DRIVERS / script, *arguments, cwd=folder)[0]

        if not files_in_memory:
            return run(self.new_folder())
        with tempfile.TemporaryDirectory(dir=self.memory) as folder:
            return run(Path(folder))


def lag_figures(results: list[dict[str, Any]], of: str) -> list[Figure]:
    """The event loop's lag, from what `xqute_jobs.py --lag` measured in each round."""
    plain = [result["lags_ms"] for result in results]
    by_time = [result["lags_by_time_ms"] for result in results]
    return [
        Figure.of_quantile(f"lag p99, {of}", "ms", 0.99, plain),
        Figure.of_quantile(f"lag p99 by time, {of}", "ms", 0.99, by_time),
        Figure.of_quantile(f"longest lag, {of}", "ms", 1.0, plain),
    ]


def fill(
    section: Section, targets: Mapping[str, Target], measure: Callable[[], list[Figure]]
) -> Section:
    """Add the figures that `measure` finds, each with the target of its name, and return `section`.

    Where it cannot measure, because xqute is not there or a run fails, each of the targets gets a
    row that says so.
    """
    try:
        require_xqute()
        section.rows += measure()
    except NotInstalledError as exc:
        section.rows += [Absent(name, f"not installed: {exc}") for name in targets]
    except BenchmarkError as exc:
        section.rows += [Absent(name, str(exc), broken=True) for name in targets]
    section.aim(targets)
    return section
