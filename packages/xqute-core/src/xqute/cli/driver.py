"""One run: feeds commands while there are any, follows the jobs to their ends, tells and counts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
import warnings
from typing import Any

from simplug import NoSuchPlugin, SimplugException

from ..defaults import JobStatus
from ..errors import ConfigError, InvalidJobError, XquteError, XquteWarning
from ..job import Job
from ..xqute import Xqute
from .display import Display, Snapshot
from .inputs import Command, Input
from .output import File, Output
from .report import Account, job_record
from .runs import mark_latest, new_run_dir
from .settings import Settings
from .words import count, describe_error

__all__ = ["Driver"]

#: How many jobs may be fed and not ended: enough for a backend to plan with. More would be folders
#: for commands whose time has not come.
_MOST_OPEN = 1000
#: The display takes this part of a core at the most.
_DISPLAY_SHARE = 0.02
_STDOUT, _STDERR = 1, 2


class Driver:
    """Runs the commands of an input.

    Args:
        settings: How.
        commands: What.
        display: Whom to tell.
    """

    def __init__(self, settings: Settings, commands: Input, display: Display) -> None:
        self._settings = settings
        self._commands = commands
        self._display = display
        self._account = Account()
        self._is_own_dir = settings.workdir is None
        self._workdir = settings.workdir or new_run_dir()
        self._open: dict[int, Job] = {}
        self._n_fed = 0
        self._n_invalid = 0
        self._room = asyncio.Event()
        self._is_stopping = False

    async def run(self) -> int:
        """Run everything, tell how it ended, and give the exit code.

        Raises:
            ConfigError: If a setting makes no sense, or there is nothing to run or to read it from.
            SchedulerError: If there is no such scheduler, or it cannot be used.
            WorkdirError: If the workdir cannot be used. In all these cases nothing was run.
        """
        xq = self._make_xqute()
        output = self._make_output(xq)
        began_s = time.monotonic()
        watcher = asyncio.create_task(self._watch(xq))
        try:
            async with xq:
                await xq.run_until_complete(keep_feeding=True)
                feeder = asyncio.create_task(self._feed(xq))
                follower = asyncio.create_task(self._follow(xq, output))
                await asyncio.wait([feeder, follower], return_when=asyncio.FIRST_COMPLETED)
                if follower.done():  # stopped: the other may wait for a line that never comes
                    feeder.cancel()
                    await asyncio.wait([feeder])
                if xq.is_feeding():
                    await xq.stop_feeding()
                await follower
            wall_s = time.monotonic() - began_s
            account = self._account
            account.error = self._raise_or_tell(feeder) or account.error
            if self._open and not account.error:
                n_left = count(len(self._open), "job is", "jobs are")
                account.error = f"{n_left} left to whoever has taken the workdir over"
            account.stopped_by = xq.stop_signal
            account.n_unfed = self._commands.n_known - self._n_fed - self._n_invalid
            if output is not None:
                await output.close(self._last_item(wall_s))
        finally:
            watcher.cancel()
            self._display.close()
        self._tell_end(output, wall_s)
        return account.exit_code

    # --- before --------------------------------------------------------------------------------

    def _make_xqute(self) -> Xqute:
        settings = self._settings
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                xq = Xqute(
                    settings.scheduler,
                    plugins=settings.plugin or None,
                    workdir=self._workdir,
                    error_strategy=settings.error_strategy,
                    num_retries=settings.retries or 0,
                    forks=settings.forks,
                    resume=settings.resume,
                    on_change=settings.on_change,
                    scheduler_opts=settings.scheduler_opts,
                    jobname_prefix=settings.name,
                )
            except XquteError:
                raise
            except NoSuchPlugin as exc:
                raise ConfigError(f"No plugin named {exc} is installed") from exc
            except SimplugException as exc:
                raise ConfigError(f"--plugin: {exc}") from exc
            except (TypeError, ValueError) as exc:
                raise ConfigError(f"Scheduler {settings.scheduler!r}: {exc}") from exc
        for warning in caught:
            text = str(warning.message)
            if settings.scheduler == "local" and issubclass(warning.category, XquteWarning):
                raise ConfigError(text.removesuffix("; it is ignored"))
            self._display.say(text, "yellow")
        return xq

    def _make_output(self, xq: Xqute) -> Output | None:
        settings = self._settings
        if sys.stdout is None or (settings.output == "none" and not settings.json):
            return None

        def broken(error: OSError) -> None:
            self._account.is_pipe_broken = isinstance(error, BrokenPipeError)
            if not self._account.is_pipe_broken:
                self._account.error = f"standard output: {describe_error(error)}"
            self._stop(xq)

        return Output(
            _STDOUT,
            keep_order=settings.keep_order,
            failed=broken,
            aside=self._display.aside if os.isatty(_STDOUT) or settings.output == "both" else None,
        )

    # --- while ---------------------------------------------------------------------------------

    async def _feed(self, xq: Xqute) -> None:
        """Feed all commands, not too far ahead, until there are no more or the run is stopped."""
        most_open = max(_MOST_OPEN, 2 * self._settings.forks)
        async for command in self._commands:
            if not xq.is_feeding():
                return
            if isinstance(command, InvalidJobError):
                self._is_invalid(xq, str(command))
            else:
                await self._feed_one(xq, command)
            while len(self._open) >= most_open:
                self._room.clear()
                await self._room.wait()
        if not self._n_fed and not self._n_invalid:
            raise ConfigError("There is nothing to run: no command was given")

    async def _feed_one(self, xq: Xqute, command: Command) -> None:
        settings = self._settings
        fed: Any = command.argv
        if settings.halt and settings.retries:
            fed = xq.scheduler.create_job(self._n_fed, command.argv)
            fed.error_retry = True
        try:
            job = await xq.feed(fed, settings.env or None)
        except InvalidJobError as exc:
            self._is_invalid(
                xq, f"{command.origin}: {str(exc).removeprefix(f'Job {self._n_fed}: ')}"
            )
            return
        self._n_fed += 1
        if job.driver is not None:  # else it has ended already
            self._open[job.index] = job
        if self._n_fed == 1 and self._is_own_dir:
            try:
                mark_latest(self._workdir)
            except OSError as exc:
                self._display.say(f"{os.path.dirname(self._workdir)}/latest is not set: {exc}")

    def _is_invalid(self, xq: Xqute, why: str) -> None:
        self._n_invalid += 1
        self._account.add_invalid(why)
        if self._settings.halt:
            self._stop(xq)

    async def _follow(self, xq: Xqute, output: Output | None) -> None:
        """Take each job into account that has ended, until the run has."""
        async for job in xq.completed():
            self._has_ended(job, output)

    def _has_ended(self, job: Job, output: Output | None) -> None:
        self._open.pop(job.index, None)
        self._room.set()
        self._account.add(job)
        if output is None:
            return
        if self._settings.json:
            output.put(job.index, job_record(job))
            return
        folder = job.kept_dir
        files = [File(f"{folder}/job.stdout", _STDOUT)]
        if self._settings.output == "both":
            files.append(File(f"{folder}/job.stderr", _STDERR))
        has_run = job.started_at is not None or job.adopted
        output.put(job.index, tuple(files) if has_run else b"")

    def _stop(self, xq: Xqute) -> None:
        if not self._is_stopping:  # a second time would be: at once
            self._is_stopping = True
            xq.cancel()

    async def _watch(self, xq: Xqute) -> None:
        """Show where the run is, as often as the display wants."""
        took_s = 0.0
        while self._display.pause_s is not None:
            await asyncio.sleep(max(self._display.pause_s, took_s / _DISPLAY_SHARE))
            began_s = time.perf_counter()
            self._display.show(self._snapshot(xq))
            took_s = time.perf_counter() - began_s

    def _snapshot(self, xq: Xqute) -> Snapshot:
        statuses = [job.status for job in self._open.values()]
        return Snapshot(
            n_known=self._commands.n_known,
            is_complete=self._commands.is_complete,
            n_running=statuses.count(JobStatus.RUNNING) + statuses.count(JobStatus.KILLING),
            n_pending=statuses.count(JobStatus.SUBMITTED),
            n_done=self._account.n_done,
            n_failed=self._account.n_failed,
            is_stopping=self._is_stopping or bool(xq.stop_signal or xq.halted_by),
        )

    # --- after ---------------------------------------------------------------------------------

    def _raise_or_tell(self, feeder: asyncio.Task[None]) -> str:
        """What kept the feeder from going on: raised if nothing was run, else given in words."""
        error = None if feeder.cancelled() else feeder.exception()
        if error is None:
            return ""
        if not self._n_fed or not isinstance(error, XquteError):
            raise error
        return describe_error(error)

    def _last_item(self, wall_s: float) -> bytes:
        if not self._settings.json:
            return b""
        return json.dumps(self._account.record(self._workdir, wall_s)).encode() + b"\n"

    def _tell_end(self, output: Output | None, wall_s: float) -> None:
        if self._settings.quiet:
            return
        account, say = self._account, self._display.say
        width = self._display.console.width
        for line in account.describe_failures(self._workdir, width):
            say(*line)
        for text in output.unread if output is not None else ():
            say(f"not passed on: {text}", "red")
        if account.error:
            say(f"The run could not go on: {account.error}", "red")
        say(*account.describe_end(self._workdir, wall_s))
