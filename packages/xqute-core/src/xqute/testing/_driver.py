"""A driver in a process of its own: it feeds jobs, tells what becomes of them, and may be killed.

It reads a pickled `Task` from its standard input, then one JSON array a line: "kill" and an index,
or "detach". Each line that it writes is such an array, too: see `Driver`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .. import _faults
from ..defaults import JobStatus
from ..job import Job
from ..plugin import plugin
from ..scheduler import Scheduler, Submission
from ._rig import TooLateError, make_xqute, replace, until

if TYPE_CHECKING:
    from ..utils import CommandType
    from ..xqute import Xqute
    from ._contract import SchedulerContract

__all__ = ["BEFORE_KILLING", "KILLED", "WHILE_SENDING", "Driver"]

#: What `Driver.wait` gives for one that was killed.
KILLED = -signal.SIGKILL

#: Instants beside those of `_faults.EDGES`: a submission is under way, where the backend takes any
#: time for it; and a kill is intended, of which the backend has not heard.
WHILE_SENDING, BEFORE_KILLING = "while-sending", "before-killing"


class Task(NamedTuple):
    """What the new process is to do.

    Attributes:
        module: Where the contract's class is: its module, file and name there.
        file: See above.
        name: See above.
        state: The attributes of the contract, pickled.
        workdir: The workdir.
        commands: What to feed, in order.
        keywords: For `Xqute`.
        dies_at: An instant, and at which time of being there the process kills itself.
        is_quiet: Whether no plugin tells of the jobs, so that none is there.
    """

    module: str
    file: str
    name: str
    state: bytes
    workdir: str | os.PathLike[str]
    commands: Sequence[CommandType]
    keywords: Mapping[str, Any]
    dies_at: tuple[str, int] | None
    is_quiet: bool


class Driver:
    """A process that runs commands over the contract's scheduler in its own copy of the contract.

    What it tells is kept in `told`, in order: ["ready"] when it is about to begin, then ["fed", i],
    ["submitted", i], ["started", i], ["killing", i] when that is so of job i; ["ended", i, outcome,
    rc, adopted] when that is final; ["over", [[outcome, rc, adopted], ...]] in the end, before it
    perhaps ["detached"]; or ["failed", type of the error, its message].

    Leaving its block kills it, if it is still there. Its methods block: call them in a thread.

    Args:
        contract: Whose scheduler. Its class must be importable by its module's name, or from its
            file; its attributes are pickled (`__getstate__` says which).
        workdir: The workdir.
        commands: What it feeds, in order.
        dies_at: An edge of `_faults.EDGES`, `WHILE_SENDING` or `BEFORE_KILLING`, and at which time
            of being there it kills itself; None: nowhere.
        is_quiet: Whether it tells nothing between "fed" and "over", and has no plugin.
        keywords: For `Xqute`.

    Attributes:
        told: What it has told.
    """

    def __init__(
        self,
        contract: SchedulerContract,
        workdir: str | os.PathLike[str],
        commands: Sequence[CommandType],
        *,
        dies_at: tuple[str, int] | None = None,
        is_quiet: bool = False,
        **keywords: Any,
    ) -> None:
        cls = type(contract)
        state = pickle.dumps(contract.__getstate__())
        file = os.path.abspath(inspect.getfile(cls))
        where = (cls.__module__, file, cls.__qualname__, state)
        task = Task(*where, workdir, commands, keywords, dies_at, is_quiet)
        self.told: list[list[Any]] = []
        self._said: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it will be seen that it is dead, and what it said
            pickle.dump(task, self._process.stdin)
            self._process.stdin.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                word = json.loads(line)
            except ValueError:
                word = None
            with self._news:
                if isinstance(word, list):
                    self.told.append(word)
                else:
                    self._said.append(line.decode(errors="replace"))
                self._news.notify_all()

    def say(self, *word: Any) -> None:
        """Ask something of it: "kill" and an index, or "detach"."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word).encode() + b"\n")
        self._process.stdin.flush()

    def expect(self, *word: Any, deadline_s: float = 60.0) -> list[Any]:
        """Return what it tells that begins with `word`, once it has.

        Raises:
            TooLateError: If it ends, or time is up, before; with what it has told and said.
        """
        until_s = time.monotonic() + deadline_s
        with self._news:
            while True:
                for told in self.told:
                    if told[: len(word)] == list(word):
                        return told
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self._reader.is_alive():
                    break
                self._news.wait(min(left_s, 0.2))
        rc = self._process.poll()
        raise TooLateError(f"{word!r} was not told (its exit code: {rc}): {self}")

    def __str__(self) -> str:
        return f"driver {self.pid} told {self.told}, said: {''.join(self._said)}"

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, deadline_s: float = 60.0) -> int:
        """Return its exit code when it has ended by itself, negative for a death by signal.

        Raises:
            TooLateError: If it has not within `deadline_s`.
        """
        try:
            self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise TooLateError(f"has not ended within {deadline_s:g} s: {self}") from None
        self.kill()
        return self._process.returncode

    def kill(self, *, with_group: bool = True) -> None:
        """Kill it, and what it has in its process group; return when it is dead.

        Args:
            with_group: False: what it has started, and not put into a group of its own, lives on.
        """
        if with_group:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        else:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._reader.join(1.0)  # who lives on may keep the pipe open
        if not self._reader.is_alive():
            self._process.stdout.close()


# --- in the other process ----------------------------------------------------------------------


def _tell(*word: Any) -> None:
    # At once, in one piece, past all buffers: we may be killed in the next instant.
    os.write(1, json.dumps(word).encode() + b"\n")


def _load(task: Task) -> SchedulerContract:
    """Make a copy of the contract, of its class from the same file."""
    try:
        found: Any = importlib.import_module(task.module)
        if os.path.abspath(inspect.getfile(found)) != task.file:
            raise ImportError
    except (ImportError, TypeError):
        spec = importlib.util.spec_from_file_location(task.module, task.file)
        assert spec is not None
        assert spec.loader is not None
        found = sys.modules[task.module] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    for name in task.name.split("."):
        found = getattr(found, name)
    contract: SchedulerContract = found.__new__(found)
    state = pickle.loads(task.state)  # noqa: S301  # from the process that has started us
    if hasattr(contract, "__setstate__"):
        contract.__setstate__(state)
    elif state:
        vars(contract).update(state)
    return contract


class _Teller:
    """A plugin that tells what becomes of the jobs."""

    name = "teller"

    @plugin.impl
    async def on_job_submitted(self, scheduler: Scheduler, job: Job) -> None:
        _tell("submitted", job.index)

    @plugin.impl
    async def on_job_started(self, scheduler: Scheduler, job: Job) -> None:
        _tell("started", job.index)

    @plugin.impl
    async def on_job_killed(self, scheduler: Scheduler, job: Job) -> None:
        _tell("ended", job.index, *_end_of(job))

    @plugin.impl
    async def on_job_failed(self, scheduler: Scheduler, job: Job) -> None:
        if job.current_status is not JobStatus.RETRYING:
            _tell("ended", job.index, *_end_of(job))

    @plugin.impl
    async def on_job_succeeded(self, scheduler: Scheduler, job: Job) -> None:
        _tell("ended", job.index, *_end_of(job))


def _end_of(job: Job) -> tuple[str, int, bool]:
    return str(job.outcome), job.rc, job.adopted


def _die_at(edge: str, nth: int) -> None:
    """Have this process kill itself at its `nth` time at an edge."""
    n_left = nth

    def on_reach(reached: str) -> None:
        nonlocal n_left
        if reached == edge:
            n_left -= 1
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    _faults.on_reach = on_reach


def _reach_more(scheduler: Scheduler) -> None:
    """Have the instants reached that the engine knows nothing of."""
    submit, kill_jobs = scheduler.submit, scheduler.kill_jobs

    async def submit_watched(submission: Submission) -> Any:
        asyncio.get_running_loop().call_soon(_faults.reach, WHILE_SENDING)
        return await submit(submission)

    async def kill_jobs_watched(jobs: Sequence[Job], force: bool = False) -> None:
        _faults.reach(BEFORE_KILLING)
        await kill_jobs(jobs, force)

    replace(scheduler, "submit", submit_watched)
    replace(scheduler, "kill_jobs", kill_jobs_watched)


class _Ear:
    """Hears on standard input what is asked, and has it done."""

    def __init__(self, xq: Xqute) -> None:
        self._xq = xq
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop.add_reader(0, self._hear)

    def _hear(self) -> None:
        data = os.read(0, 65536)
        if not data:
            self._loop.remove_reader(0)
        for line in data.splitlines():
            what, *words = json.loads(line)
            todo = self._kill(*words) if what == "kill" else self._detach()
            self._tasks.add(self._loop.create_task(todo))

    async def _kill(self, index: int) -> None:
        job = self._xq.jobs[index]
        kill = asyncio.create_task(self._xq.scheduler.kill_job_and_update_status(job))
        await until(lambda: job.status is JobStatus.KILLING or kill.done(), "it is being killed")
        _tell("killing", index)
        await kill

    async def _detach(self) -> None:
        await self._xq.detach()
        _tell("detached")


async def _drive(task: Task) -> None:
    contract = _load(task)
    if task.dies_at is not None:
        _die_at(*task.dies_at)
    xq = make_xqute(
        contract, task.workdir, plugins=[] if task.is_quiet else [_Teller()], **task.keywords
    )
    if task.dies_at is not None and task.dies_at[0] in (WHILE_SENDING, BEFORE_KILLING):
        _reach_more(xq.scheduler)
    _Ear(xq)
    _tell("ready")
    try:
        async with xq:
            for number, command in enumerate(task.commands):
                await xq.feed(command)
                _tell("fed", number)
    except Exception as exc:
        _tell("failed", type(exc).__name__, str(exc))
        raise
    _tell("over", [_end_of(job) for job in xq.jobs])


def main() -> None:
    """Be the other process."""
    # Without a buffer: what follows is not ours to take.
    with open(0, "rb", buffering=0, closefd=False) as file:
        task = pickle.load(file)  # noqa: S301  # likewise
    asyncio.run(_drive(task))
