"""Samples and what is told of them, and the processes that are timed."""

from __future__ import annotations

import json
import math
import os
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

STOP_GRACE_S = 10.0


class BenchmarkError(Exception):
    """A measurement could not be made or was wrong (a job failed, a driver crashed); says which."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Repeated measurements of one quantity, at least one."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)

    def quantile(self, fraction: float) -> float:
        """The smallest value that at least `fraction` (0 to 1) of all values do not exceed."""
        ranked = sorted(self.values)
        return ranked[max(0, math.ceil(fraction * len(ranked)) - 1)]


@dataclass(frozen=True, slots=True)
class Finished:
    """A process that ended with exit code 0."""

    seconds: float
    """Wall time from before its start to after its end."""
    stdout: str


def probe_files_us(folder: Path) -> float:
    """What a folder with a one-byte file costs in `folder`, where they stay.

    Args:
        folder: One that is removed when all has been measured: see `Bench.new_folder`.
    """
    count = 500
    scratch = Path(tempfile.mkdtemp(prefix="probe-", dir=folder))
    began_s = time.perf_counter()
    for index in range(count):
        made = scratch / str(index)
        made.mkdir()
        (made / "file").write_bytes(b"0")
    return (time.perf_counter() - began_s) / count * 1e6


@contextmanager
def folder_of_service() -> Iterator[Path]:
    """Give a folder for a service's own files, in memory where that can be.

    A cluster removes many files for each job. Where these were beside those of the runs, ext4 would
    pass over each of them whenever it makes another (see `Bench.new_folder`).
    """
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="xqute-service-", dir=memory) as folder:
        yield Path(folder)


def run_process(
    argv: Sequence[str | os.PathLike[str]],
    *,
    cwd: Path,
    stdin: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = 300,
) -> Finished:
    """Run a program in a session of its own and time it from outside.

    Its temporary files go to `cwd`, since not every program removes its own.

    Args:
        stdin: The file it reads; None: nothing.
        env: Variables on top of this process's.

    Raises:
        BenchmarkError: It cannot be started, exits with another code than 0, or takes longer than
            `timeout_s`; names the program and has the last line of its stderr.

    On any exception the program is stopped before this returns: TERM, so that it can stop its jobs,
    and KILL to its group after a grace.
    """
    name = " ".join(Path(part).name for part in argv[:3])
    with open(stdin or os.devnull, "rb") as source:
        started = time.perf_counter()
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                stdin=source,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, "TMPDIR": str(cwd), **(env or {})},
                start_new_session=True,
                text=True,
                errors="replace",
            )
        except OSError as exc:
            raise BenchmarkError(f"{name}: {exc}") from exc
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
            seconds = time.perf_counter() - started
        except subprocess.TimeoutExpired as exc:
            raise BenchmarkError(f"{name}: not done after {timeout_s:g} s") from exc
        finally:
            if process.returncode is None:
                _stop(process)
    if process.returncode != 0:
        last = (stderr.strip() or stdout.strip() or "no output").splitlines()[-1]
        raise BenchmarkError(f"{name}: exit code {process.returncode}: {last.strip()}")
    return Finished(seconds, stdout)


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=STOP_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def run_driver(
    python: str | os.PathLike[str],
    script: Path,
    *arguments: str | float,
    cwd: Path,
    isolated: bool = False,
    timeout_s: float = 300,
) -> tuple[dict[str, Any], float]:
    """Run one of `drivers/` and return what it measured, and its wall time from outside.

    A driver's last line on stdout is a JSON object.

    Args:
        isolated: Python's -I, for environments that must not see what this one has on its path.

    Raises:
        BenchmarkError: As `run_process`, or it printed something else.
    """
    flags = ["-I"] if isolated else []
    finished = run_process(
        [python, *flags, script, *map(str, arguments)],
        cwd=cwd,
        env={"TQDM_DISABLE": "1"},
        timeout_s=timeout_s,
    )
    try:
        result = json.loads(finished.stdout.splitlines()[-1])
    except (IndexError, ValueError) as exc:
        raise BenchmarkError(f"{script.name}: printed no result: {finished.stdout!r}") from exc
    if not isinstance(result, dict):
        raise BenchmarkError(f"{script.name}: printed {result!r}")
    return result, finished.seconds
