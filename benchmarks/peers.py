"""What runs `true` many times beside xqute: the floor, and other programs of the same purpose."""

from __future__ import annotations

import itertools
import shlex
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import BenchmarkError, run_driver, run_process

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

DRIVERS = Path(__file__).resolve().parent / "drivers"


class NotInstalledError(Exception):
    """A peer is not on this machine and could not be put there; says why."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a peer."""

    jobs: int
    seconds: float
    """From the first command handed over until the end of the last is known."""
    outside_s: float
    """The whole process, its start and its end included."""
    told: dict[str, Any] = field(default_factory=dict)
    """All that its driver measured, if it has one."""

    @property
    def jobs_per_s(self) -> float:
        """By the inner clock."""
        return self.jobs / self.seconds


class Peer(ABC):
    """Something that runs `true` n times, `parallel` at once, in a process of its own.

    Args:
        home: A folder of its own, for what it needs beyond one run.
    """

    name: str

    def __init__(self, home: Path, parallel: int) -> None:
        self.home = home
        self.parallel = parallel

    def prepare(self) -> None:
        """Make it ready to run.

        Raises:
            NotInstalledError: It is not here.
        """

    @abstractmethod
    def run(self, jobs: int, folder: Path) -> Run:
        """Run `jobs` jobs in the empty `folder`; every one has succeeded.

        Raises:
            BenchmarkError: One has not.
        """


def require_xqute() -> None:
    """Make sure that this interpreter has xqute-core.

    Raises:
        NotInstalledError: It has not.
    """
    try:
        version("xqute-core")
    except PackageNotFoundError as exc:
        raise NotInstalledError("xqute-core, for " + sys.executable) from exc


class XquteLocal(Peer):
    """xqute with its local scheduler."""

    name = "xqute"
    flags: tuple[str, ...] = ()

    def prepare(self) -> None:
        """Look for xqute-core in this interpreter."""
        require_xqute()

    def run(self, jobs: int, folder: Path) -> Run:
        """Feed and run them; wall and CPU time are the driver's own account."""
        result, outside_s = run_driver(
            sys.executable,
            DRIVERS / "xqute_jobs.py",
            f"--forks={self.parallel}",
            f"--jobs={jobs}",
            *self.flags,
            cwd=folder,
        )
        return Run(jobs, result["seconds"], outside_s, result)


class XquteWithLagSampler(XquteLocal):
    """xqute again, with a coroutine beside it that asks the event loop for its lag."""

    name = "xqute, lag sampled"
    flags = ("--lag",)


class Floor(XquteLocal):
    """`xargs` running the wrapper scripts that xqute would run, rendered beforehand."""

    name = "floor: xargs, same wrapper"

    def run(self, jobs: int, folder: Path) -> Run:
        """Render, which is not measured, then run; each wrapper must have left rc 0."""
        result, _ = run_driver(
            sys.executable, DRIVERS / "render_wrappers.py", "--jobs", jobs, cwd=folder
        )
        argvs: list[list[str]] = result["argvs"]
        # What all have in common is what xargs starts; the rest of each is a line for it.
        words = zip(*argvs, strict=True)
        shared = [same[0] for same in itertools.takewhile(lambda word: len(set(word)) == 1, words)]
        lines = folder / "lines"
        lines.write_text("".join(f"{shlex.join(argv[len(shared) :])}\n" for argv in argvs))
        argv = ["xargs", f"-P{self.parallel}", "-L1", *shared]
        finished = run_process(argv, cwd=folder, stdin=lines)
        ended = [path.read_text().strip() for path in folder.glob("jobs/*/job.rc")]
        if ended != ["0"] * jobs:
            raise BenchmarkError(f"{self.name}: {ended.count('0')} of {jobs} left rc 0")
        return Run(jobs, finished.seconds, finished.seconds)


class BareLoop(Peer):
    """`xargs` starting bash for each `true`, and nothing else: what the machine can do."""

    name = "bare loop: xargs, bash -c true"

    def prepare(self) -> None:
        """Look for xargs."""
        if shutil.which("xargs") is None:
            raise NotInstalledError("xargs (Debian package findutils)")

    def run(self, jobs: int, folder: Path) -> Run:
        """Run them; xargs exits 0 only if each did."""
        lines = folder / "lines"
        lines.write_text("0\n" * jobs)
        argv = ["xargs", f"-P{self.parallel}", "-n1", "bash", "-c", "true"]
        finished = run_process(argv, cwd=folder, stdin=lines)
        return Run(jobs, finished.seconds, finished.seconds)


class GnuParallel(Peer):
    """GNU parallel, reading commands from a file."""

    name = "GNU parallel"

    def prepare(self) -> None:
        """Look for it (another program has that name, too) and let it measure its limits once."""
        try:
            text = subprocess.run(
                ["parallel", "--version"], capture_output=True, text=True, check=False
            ).stdout
        except OSError as exc:
            raise NotInstalledError("parallel (Debian package parallel)") from exc
        if not text.startswith("GNU parallel"):
            raise NotInstalledError("the `parallel` of this machine is not GNU parallel")
        self.name = text.splitlines()[0]

    def run(self, jobs: int, folder: Path) -> Run:
        """Run them, in bash as the wrapper does; its exit code counts the failures."""
        commands = folder / "commands"
        commands.write_text("true\n" * jobs)
        finished = run_process(
            ["parallel", f"-j{self.parallel}"],
            cwd=folder,
            stdin=commands,
            env={"PARALLEL_HOME": str(self.home), "PARALLEL_SHELL": "/bin/bash"},
        )
        return Run(jobs, finished.seconds, finished.seconds)


class _FromIndex(Peer):
    """A Python package in a virtual environment of its own, made if it is not in `home` yet."""

    requirement: str
    module: str
    script: str

    @property
    def _python(self) -> Path:
        return self.home / "venv" / "bin" / "python"

    @cached_property
    def _version(self) -> str:
        ask = f"import importlib.metadata as m; print(m.version({self.module!r}))"
        return self._call([self._python, "-I", "-c", ask])

    def prepare(self) -> None:
        """Make the environment, or use the one that is there."""
        try:
            version_here = self._version
        except NotInstalledError:
            self._call([sys.executable, "-m", "venv", "--clear", self.home / "venv"])
            options = ["--quiet", "--disable-pip-version-check", "--no-input"]
            self._call([self._python, "-m", "pip", "install", *options, self.requirement])
            version_here = self._version
        self.name = f"{self.name} {version_here}"

    def _call(self, argv: Sequence[str | os.PathLike[str]]) -> str:
        try:
            return run_process(argv, cwd=self.home).stdout.strip()
        except BenchmarkError as exc:
            raise NotInstalledError(f"{self.requirement} from the package index: {exc}") from exc

    def run(self, jobs: int, folder: Path) -> Run:
        """Run its driver, which checks each job's end."""
        script = DRIVERS / self.script
        result, outside_s = run_driver(
            self._python, script, jobs, self.parallel, cwd=folder, isolated=True
        )
        return Run(jobs, result["seconds"], outside_s, result)


class HyperQueue(_FromIndex):
    """HyperQueue, a server and one worker in one process; its tasks start without a shell."""

    name = "HyperQueue"
    requirement = "hyperqueue"
    module = "hyperqueue"
    script = "hyperqueue_jobs.py"


class PublicXqute(_FromIndex):
    """The public distribution of the same import name, version 2."""

    name = "public xqute"
    requirement = "xqute<3"
    module = "xqute"
    script = "public_xqute_jobs.py"
