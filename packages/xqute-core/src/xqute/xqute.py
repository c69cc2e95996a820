"""The public face: `Xqute` runs commands as jobs; `run`, for scripts without an event loop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._checks import check_count, check_seconds
from .defaults import (
    DEFAULT_ERROR_STRATEGY,
    DEFAULT_NUM_RETRIES,
    DEFAULT_SCHEDULER_FORKS,
    DEFAULT_WORKDIR,
    JobOutcome,
    JobStatus,
)
from .errors import ConfigError, InvalidJobError
from .job import Job
from .plugin import snapshot
from .schedulers import get_scheduler
from .utils import logger

if TYPE_CHECKING:
    import os
    from typing import Self

    from ._engine.engine import Engine
    from ._engine.session import Session
    from .scheduler import Scheduler
    from .utils import CommandType

__all__ = ["Xqute", "run"]


class Xqute:
    """Runs commands as jobs on one backend.

    Made inside a running event loop. Work starts when the first command is fed; feed and wait in
    any order. As an async context manager it waits for all jobs when the block ends, and stops them
    when the block raises.

    Args:
        scheduler: The name under which a scheduler is installed, or a `Scheduler` class.
        plugins: Names or plugin objects; ``-name`` disables one. Either all names carry ``+`` or
            ``-``, or none does: then only these are enabled. None: all that are installed.
        workdir: The folder for the jobs' files. One run at a time owns it.
        submission_batch: How many submissions may be under way at once; None: the default.
        error_strategy: What a failed job leads to: "ignore", "retry" or "halt".
        num_retries: How often a failed job is tried again under "retry".
        forks: How many jobs may be with the backend at once.
        scheduler_opts: Keyword arguments for the scheduler; they win over those of the same name.
        jobname_prefix: What job names begin with; None: the scheduler's name.
        retry_lost: Whether a job whose fate is unknown may be run again; it may then run twice.
        resume: Whether jobs that have succeeded in an earlier run over this workdir are adopted.
            Otherwise they run again. Jobs that are still there are taken up in any case.
        on_change: What to do about a job that is still there and has another command,
            environment or options now: "error", or "rerun": end it, and run the new one.

    Attributes:
        jobs: The jobs, in feeding order.
        scheduler: The scheduler.
        halted_by: The job whose failure ended the run, under "halt".
        stop_signal: The signal that stopped the run; None if none did.

    Raises:
        RuntimeError: Outside a running event loop.
        SchedulerNotFoundError: If no such scheduler is installed.
        ConfigError: If a keyword makes no sense.
        WorkdirError: If the workdir cannot be used.
    """

    name = "Xqute"
    #: Where programs look for what enables plugins for a run, and end that if it is there. Here a
    #: run has its plugins without changing those of others.
    plugin_context: None = None

    def __init__(
        self,
        scheduler: str | type[Scheduler] = "local",
        *,
        plugins: Iterable[Any] | None = None,
        workdir: str | os.PathLike[str] = DEFAULT_WORKDIR,
        submission_batch: int | None = None,
        error_strategy: str = DEFAULT_ERROR_STRATEGY,
        num_retries: int = DEFAULT_NUM_RETRIES,
        forks: int = DEFAULT_SCHEDULER_FORKS,
        scheduler_opts: Mapping[str, Any] | None = None,
        jobname_prefix: str | None = None,
        retry_lost: bool = False,
        resume: bool = False,
        on_change: str = "error",
    ) -> None:
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "Xqute is made inside a running event loop; in a script, use xqute.run(commands)"
            ) from None
        # Most of the code: not needed to `import xqute`, and no run is to wait for it.
        from ._engine import session  # noqa: F401

        self._hooks = snapshot(plugins)
        own: dict[str, Any] = {
            "workdir": workdir,
            "forks": forks,
            "error_strategy": error_strategy,
            "num_retries": num_retries,
            "jobname_prefix": jobname_prefix,
            "submission_batch": submission_batch,
        }
        self.scheduler = get_scheduler(scheduler)(**{**own, **(scheduler_opts or {})})
        self.scheduler.hooks = self._hooks
        self.jobs: list[Job] = []
        self.halted_by: Job | None = None
        self.stop_signal: signal.Signals | None = None
        if on_change not in ("error", "rerun"):
            raise ConfigError(f'on_change must be "error" or "rerun": {on_change!r}')
        self._how = {"retry_lost": retry_lost, "resume": resume, "on_change": on_change}
        #: The indices in use: all below `_n_indices`, and these.
        self._n_indices = 0
        self._sparse_indices: set[int] = set()
        self._ended: list[Job] = []
        self._news = asyncio.Event()
        self._engine: Engine | None = None
        self._task: asyncio.Task[None] | None = None
        self._detaching: asyncio.Task[None] | None = None
        self._keep_feeding = False
        self._is_closing = False
        self._was_stopped = False
        self._has_shut_down = False
        self._progress = asyncio.Event()
        self._starting = asyncio.Lock()
        self._hooks.call("on_init", self)

    def __repr__(self) -> str:
        n_open = self._engine.n_open if self._engine else 0
        return f"<Xqute: {len(self.jobs)} jobs fed, {n_open} not ended, on {self.scheduler!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *exc: object) -> None:
        if exc_type is not None:
            self.cancel()
        await self._finish()

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task of the run; cancelling it stops the run. None before the first job is fed."""
        return self._task

    def is_abandoned(self) -> bool:
        """Whether the event loop of this run is gone, so that it can never end by itself."""
        return self._loop.is_closed()

    # --- feeding -------------------------------------------------------------------------------

    async def feed(
        self,
        cmd: CommandType | Job,
        envs: Mapping[str, object] | None = None,
        *,
        name: str | None = None,
        timeout: float | None = None,
        num_retries: int | None = None,
        resources: Any = None,
        scheduler_opts: Mapping[str, Any] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        inputs: Sequence[str | os.PathLike[str]] = (),
        outputs: Sequence[str | os.PathLike[str]] = (),
    ) -> Job:
        """Take a command to be run; give its job. It runs when there is room.

        Args:
            cmd: A string (split like a shell splits words), the words, or a Job.
            envs: Environment variables; merged into those of a Job.
            name: A name for people.
            timeout: Seconds after its start until it is ended; None: as the scheduler says.
            num_retries: How often it is tried again; None: as the scheduler says.
            resources: Portable resources for this job alone.
            scheduler_opts: Native options for this job alone.
            cwd: Where it runs.
            inputs: Files that a backend without a shared file system brings to it.
            outputs: Files that it brings back.

        Raises:
            InvalidJobError: If the command cannot be run anywhere, or its index is in use;
                `JobChangedError`: it is still there from an earlier run, as another command.
            ConfigError: If a keyword makes no sense.
            WorkdirError: If the workdir cannot be used; `WorkdirLockedError`: another run has it.
        """
        _check(timeout, num_retries, resources)
        engine = await self._get_engine()
        if isinstance(cmd, Job):
            job = cmd
            if self._has_index(job.index):
                raise InvalidJobError(f"There is a job {job.index} already")
            if envs:
                job.envs = {**job.envs, **envs}
        else:
            job = self.scheduler.create_job(self._n_indices, cmd, envs)
        given = {
            "name": name,
            "timeout": timeout,
            "num_retries": num_retries,
            "resources": resources,
            "scheduler_opts": scheduler_opts,
            "cwd": cwd,
            "inputs": inputs or None,
            "outputs": outputs or None,
        }
        for attribute, value in given.items():
            if value is not None:
                setattr(job, attribute, value)
        self._take_index(job.index)
        self.jobs.append(job)
        if engine is None:
            job.enter(JobStatus.FINISHED)
            job.outcome, job.reason = JobOutcome.CANCELLED, "fed after the run was stopped"
            self._ended.append(job)
            return job
        try:
            await engine.feed(job)
        except BaseException:
            self.jobs.remove(job)
            self._free_index(job.index)
            raise
        return job

    put = feed

    async def _get_engine(self) -> Engine | None:
        """Give the engine, started if need be; None: the run was stopped, and takes no more."""
        if self._engine is not None or self._was_stopped:
            return self._engine
        async with self._starting:  # several may feed at once
            if self._task is not None and self._is_closed:
                await asyncio.wait([self._task])
            if self._is_closed and not self._was_stopped:
                await self._start()
        return self._engine

    @property
    def _is_closed(self) -> bool:
        return self._engine is None

    def _has_index(self, index: int) -> bool:
        return index < self._n_indices or index in self._sparse_indices

    def _take_index(self, index: int) -> None:
        if index == self._n_indices and not self._sparse_indices:
            self._n_indices += 1
            return
        self._sparse_indices.add(index)
        while self._n_indices in self._sparse_indices:
            self._sparse_indices.remove(self._n_indices)
            self._n_indices += 1

    def _free_index(self, index: int) -> None:
        if index == self._n_indices - 1:
            self._n_indices -= 1
        else:
            self._sparse_indices.discard(index)

    def is_feeding(self) -> bool:
        """Whether the run waits for more, until `stop_feeding`."""
        return self._keep_feeding

    async def stop_feeding(self) -> None:
        """Feed no more, and return when all jobs have ended."""
        if not self._keep_feeding and not self._was_stopped:
            logger.error("stop_feeding() without run_until_complete(keep_feeding=True): ignored")
            return
        await self._finish()

    # --- waiting -------------------------------------------------------------------------------

    async def run_until_complete(self, keep_feeding: bool = False) -> None:
        """Return when all jobs have ended and their hooks are done.

        A stop by a signal, by `cancel` or by "halt" lets it return early, once what ran is killed.
        If the caller is cancelled, the run is stopped likewise, and then CancelledError is raised.

        Args:
            keep_feeding: Return at once; more is fed later, until `stop_feeding` or a stop.
        """
        if keep_feeding:
            self._keep_feeding = not self._was_stopped
            return
        await self._finish()

    async def _finish(self) -> None:
        self._keep_feeding = False
        self._is_closing = True
        self._progress.set()
        self._news.set()
        if self._task is None:
            self._shut_down(None)
            return
        cancelled = False
        while not self._task.done():
            try:
                await asyncio.wait([self._task])
            except asyncio.CancelledError:
                cancelled = True
                self._stop(at_once=self._is_stopping)
        if cancelled:
            raise asyncio.CancelledError
        self._task.result()

    async def completed(self) -> AsyncIterator[Job]:
        """Give each job once it has ended, in that order; end when all that were fed have."""
        n_given = 0
        while True:
            while n_given < len(self._ended):
                n_given += 1
                yield self._ended[n_given - 1]
            if not self._keep_feeding and (self._engine is None or not self._engine.n_open):
                return
            self._news.clear()
            await self._news.wait()

    # --- stopping ------------------------------------------------------------------------------

    def cancel(self, sig: signal.Signals | None = None) -> None:
        """Stop the run: kill what runs, cancel what waits. A second call does so without grace.

        Args:
            sig: The signal that is the reason, if one is.
        """
        if sig is not None:
            self.stop_signal = self.stop_signal or sig
        self._stop(sig, at_once=self._is_stopping)

    @property
    def _is_stopping(self) -> bool:
        return self._engine is not None and self._engine.is_stopping

    def _stop(self, sig: signal.Signals | None = None, *, at_once: bool = False) -> None:
        self._keep_feeding = False
        self._is_closing = self._was_stopped = True
        if self._engine is not None and at_once:
            self._engine.stop_at_once()
        elif self._engine is not None:
            self._engine.stop(kill=self._shut_down(sig))
        self._progress.set()
        self._news.set()

    def on_stop_signal(self, sig: signal.Signals) -> None:
        """Stop the run because of a signal."""
        words = "at once" if self._is_stopping else "gracefully, once more: at once"
        logger.warning("Got %s: stopping %s", sig.name, words)
        self.cancel(sig)

    def on_halt(self, job: Job) -> None:
        """Stop the run because of the failure of a job, under "halt"."""
        self.halted_by = job
        logger.error("Halted by %r: %s", job, job.reason)
        self._stop()

    def _shut_down(self, sig: signal.Signals | None) -> bool:
        """Call `on_shutdown`, once a run; give whether the run is to kill what runs."""
        if self._has_shut_down:
            return True
        self._has_shut_down = True
        return False not in self._hooks.call("on_shutdown", self, sig)

    async def detach(self) -> None:
        """Leave the run without ending its jobs; return when it has let go of them.

        What is with the backend runs on, what waits is not submitted. A later run over the same
        workdir to which the same jobs are fed takes them up again. Nothing can be fed to this one.
        """
        self._keep_feeding = False
        self._was_stopped = self._is_closing = True
        if self._engine is not None and self._task is not None:
            await self._engine.detach()
            self._progress.set()
            await asyncio.wait([self._task])

    def on_workdir_lost(self) -> None:
        """Let go of the workdir, which another run has taken over, and of all jobs."""
        self._detaching = self._loop.create_task(self.detach())

    # --- the run -------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Take the workdir, and begin to work."""
        from ._engine.session import Session

        session = await Session.open(self, self.scheduler, self._hooks, **self._how)
        self._has_shut_down = self._is_closing = False
        self._engine = session.engine
        self._task = self._loop.create_task(self._run(session), name="xqute")

    def on_job_ended(self, job: Job) -> None:
        """Hear from the engine of a job that has ended for good, after its hooks."""
        self._ended.append(job)
        self.on_job_released(job)

    def on_job_released(self, job: Job) -> None:
        """Hear from the engine that it has one job less, this one."""
        self._news.set()
        self._progress.set()

    async def _run(self, session: Session) -> None:
        """Be there until all jobs have ended; then give everything back."""
        while session.engine.n_open or not self._is_closing:
            self._progress.clear()
            try:
                await self._progress.wait()
            except asyncio.CancelledError:
                self._stop(at_once=self._is_stopping)
        self._shut_down(None)
        self._engine = None
        try:
            await session.close()
        finally:
            self._news.set()


def _check(timeout: float | None, num_retries: int | None, resources: Any) -> None:
    """Raise ConfigError for what makes no sense for any job."""
    if timeout is not None:
        check_seconds("timeout", timeout)
    if num_retries is not None:
        check_count("num_retries", num_retries, 0)
    if resources is not None:
        from .resources import check_resources

        check_resources(resources)


def run(commands: Iterable[CommandType | Job], **keywords: Any) -> list[Job]:
    """Run commands to their end and give their jobs, in order; for scripts without an event loop.

    Args:
        commands: The commands, as for `Xqute.feed`.
        keywords: As for `Xqute`.

    Raises:
        RuntimeError: Inside a running event loop.
        KeyboardInterrupt: If SIGINT stopped the run, after what ran was killed.
        XquteError: As `Xqute` and `Xqute.feed` do.
    """
    if isinstance(commands, str | bytes):
        raise InvalidJobError(f"xqute.run() takes a list of commands, not one: {commands!r}")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_run_all(commands, keywords))
    raise RuntimeError(
        "xqute.run() would block the running event loop; there, use: "
        "`async with Xqute(...) as xq: await xq.feed(command)`"
    )


async def _run_all(commands: Iterable[CommandType | Job], keywords: Mapping[str, Any]) -> list[Job]:
    async with Xqute(**keywords) as xq:
        for command in commands:
            await xq.feed(command)
    if xq.stop_signal is signal.SIGINT:
        raise KeyboardInterrupt
    return xq.jobs
