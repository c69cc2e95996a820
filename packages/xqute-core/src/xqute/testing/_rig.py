"""What a promise is tried with: schedulers and runs as the contract's class makes them."""

from __future__ import annotations

import asyncio
import inspect
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..defaults import JobStatus
from ..job import Job
from ..scheduler import Scheduler
from ..utils import CommandType
from ..xqute import Xqute

if TYPE_CHECKING:
    from ._contract import SchedulerContract
    from ._driver import Driver

__all__ = [
    "Backend",
    "Rig",
    "TooLateError",
    "bash",
    "make_scheduler",
    "make_xqute",
    "marker",
    "replace",
    "until",
]


class TooLateError(AssertionError):
    """What should have happened has not, within the time there was for it."""


def bash(script: str, *args: str) -> list[str]:
    """Give the command that runs a bash script with these arguments."""
    return ["bash", "-c", script, "bash", *args]


def marker() -> str:
    """Give a word by which a process can be found: no other command line has it."""
    return f"xqute-kit-{secrets.token_hex(8)}"


async def until(
    fact: Callable[[], bool | Awaitable[bool]], what: str, deadline_s: float = 10.0
) -> None:
    """Return when `fact()` is true.

    Raises:
        TooLateError: With `what`, if it is not within `deadline_s`.
    """
    deadline = time.monotonic() + deadline_s
    pause_s = 0.001
    while True:
        holds = fact()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > deadline:
            raise TooLateError(f"not so within {deadline_s:g} s: {what}")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 0.05)


def make_scheduler(
    contract: SchedulerContract, workdir: str | os.PathLike[str], **keywords: Any
) -> Scheduler:
    """Make a scheduler of the contract's, with waiting times as it says."""
    scheduler = contract.make_scheduler(workdir, **keywords)
    contract.tune(scheduler)
    return scheduler


def make_xqute(
    contract: SchedulerContract, workdir: str | os.PathLike[str], **keywords: Any
) -> Xqute:
    """Make a run over a scheduler of the contract's; keywords as for `Xqute`."""

    class Made(Scheduler):
        """What `Xqute` can call like a class, and takes for one."""

        name = "made"

        def __new__(cls, *args: Any, **keywords: Any) -> Scheduler:  # type: ignore[misc]
            return make_scheduler(contract, *args, **keywords)

    return Xqute(Made, workdir=workdir, scheduler_opts=keywords.pop("opts", None), **keywords)


def replace(scheduler: Scheduler, name: str, value: Any) -> None:
    """Set an attribute of one scheduler, or put a function in the place of one of its methods.

    Raises:
        AttributeError: If its class has slots and no `__dict__`.
    """
    setattr(scheduler, name, value)


class Rig:
    """Makes what one promise is tried with, in a folder of its own.

    Args:
        contract: The class that says how its schedulers are made.
        tmp_path: Where the workdir is made, if it is a local one.
        name: The workdir's.

    Attributes:
        workdir: The folder for the jobs' files.
    """

    def __init__(self, contract: SchedulerContract, tmp_path: Path, name: str = "workdir") -> None:
        self.contract = contract
        self.workdir = contract.make_workdir(tmp_path, name)
        self._tmp_path = tmp_path

    def elsewhere(self) -> Rig:
        """Give the like of this with another workdir."""
        return Rig(self.contract, self._tmp_path, "elsewhere")

    # --- with an engine ------------------------------------------------------------------------

    def xqute(self, **keywords: Any) -> Xqute:
        """Make a run over a scheduler of the contract's; keywords as for `Xqute`."""
        return make_xqute(self.contract, self.workdir, **keywords)

    @asynccontextmanager
    async def running(self, **keywords: Any) -> AsyncIterator[Xqute]:
        """Make a run, and wait at the end of the block until all its jobs have ended.

        Raises:
            TooLateError: If they have not within the contract's `deadline_s`.
        """
        xq = self.xqute(**keywords)
        deadline_s = self.contract.deadline_s
        try:
            async with asyncio.timeout(deadline_s), xq:
                yield xq
        except TimeoutError as exc:
            raise TooLateError(f"not over within {deadline_s:g} s: {xq!r}") from exc

    async def run(self, *commands: CommandType | Job, **keywords: Any) -> list[Job]:
        """Run commands to their end; give their jobs."""
        async with self.running(**keywords) as xq:
            for command in commands:
                await xq.feed(command)
        return xq.jobs

    async def feed_running(self, xq: Xqute, command: CommandType, **options: Any) -> Job:
        """Feed a command and wait until the run says that it runs."""
        job = await xq.feed(command, **options)
        await self.until(lambda: job.status is JobStatus.RUNNING, f"{job!r} runs")
        return job

    async def feed_ready(self, xq: Xqute, command: CommandType, **options: Any) -> Job:
        """Feed a command and wait until its first line of output is "ready"."""
        job = await xq.feed(command, **options)
        await self.until_ready(job)
        return job

    async def until_ready(self, job: Job) -> None:
        """Wait until the first line of a job's output is "ready"."""
        await self.until(
            lambda: self.output(job).startswith(b"ready\n"), f"the command of {job!r} is ready"
        )

    def driver(self, *commands: CommandType, **keywords: Any) -> Driver:
        """Make a driver of the contract's scheduler that feeds commands, in another process."""
        from ._driver import Driver

        return Driver(self.contract, self.workdir, commands, **keywords)

    # --- without one ---------------------------------------------------------------------------

    def scheduler(self, **keywords: Any) -> Scheduler:
        """Make a scheduler of the contract's."""
        return make_scheduler(self.contract, self.workdir, **keywords)

    @asynccontextmanager
    async def backend(self, **keywords: Any) -> AsyncIterator[Backend]:
        """Make a scheduler without an engine; what it was given is killed at the end."""
        backend = Backend(self, self.scheduler(**keywords))
        async with backend.scheduler:
            try:
                async with asyncio.timeout(self.contract.deadline_s):
                    yield backend
            except TimeoutError as exc:
                raise TooLateError(f"nothing came of it: {backend.jobs}") from exc
            finally:
                await backend.scheduler.kill_jobs(backend.jobs)
                await backend.scheduler.kill_jobs(backend.jobs, force=True)

    # --- what is asked -------------------------------------------------------------------------

    async def until(self, fact: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Return when `fact()` is true; `TooLateError` with `what` after the deadline."""
        await until(fact, what, self.contract.deadline_s)

    def command(self, *rcs: int, runs_s: float = 0.0) -> CommandType:
        """Give a command that exits with these codes, the last one from then on, after `runs_s`."""
        return self.contract.command(*rcs, runs_s=runs_s)

    def read(self, job: Job, name: str) -> bytes | None:
        """Give the content of a file of a job's folder; None: it is not there."""
        return self.contract.read(job, name)

    def output(self, job: Job) -> bytes:
        """Give what the command of a job has written to its standard output."""
        return self.read(job, "job.stdout") or b""

    def errors(self, job: Job) -> bytes:
        """Give what the command of a job has written to its standard error."""
        return self.read(job, "job.stderr") or b""

    def find_processes(self, word: str) -> list[int]:
        """Give the ids of the processes that have this word on their command line."""
        return self.contract.find_processes(word)


class Backend:
    """A scheduler without an engine, and what was submitted to it."""

    def __init__(self, rig: Rig, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.jobs: list[Job] = []
        self._rig = rig

    def create(self, command: CommandType) -> Job:
        """Make the next job."""
        job = self.scheduler.create_job(len(self.jobs), command)
        self.jobs.append(job)
        return job

    async def submit(self, command: CommandType) -> Job:
        """Make a job and submit it."""
        job = self.create(command)
        job.clean()
        job.jid = await self.scheduler.submit_job(job)
        return job

    async def until_running(self, *jobs: Job) -> None:
        """Wait until the backend has the jobs."""
        for job in jobs:
            await self._rig.until(
                lambda job=job: self.scheduler.job_is_running(job),  # type: ignore[misc]
                f"{job!r} is running, as the backend says",
            )

    async def until_gone(self, *jobs: Job) -> None:
        """Wait until the backend has none of the jobs any more."""
        for job in jobs:

            async def is_gone(job: Job = job) -> bool:
                return not await self.scheduler.job_is_running(job)

            await self._rig.until(is_gone, f"{job!r} is gone, as the backend says")
