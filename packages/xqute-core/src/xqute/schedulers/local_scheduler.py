"""The scheduler that runs jobs as processes of this machine."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .. import _protocol
from .._processes import ProcessTable, runs_script
from ..defaults import JOBCMD_WRAPPER_LANG, SIGNAL_BASE, JobCause, JobStatus
from ..errors import SubmitError, XquteWarning
from ..job import Job
from ..machine import Holding, Machine, impossible
from ..scheduler import BackendState, Phase, Scheduler
from ..wrapper import PLAIN

__all__ = ["LocalScheduler"]

#: How long a wrapper that has told its end may take to be gone.
_DRAIN_S = 0.5
#: A submission key: run, index, attempt.
_KEY = r"xq-([0-9a-z]+)-([0-9]+)-([0-9]+)"


class LocalScheduler(Scheduler):
    """Runs each job as a process group of its own, in a session that no other job is in meanwhile.

    The native job id is the wrapper's process id. It alone is never trusted: a process is taken for
    a job only if it is a child that was not reaped yet, or if the job's start claim names its start
    time and this boot.

    When a job has ended, what it left running in its process group is killed; when it was killed,
    also what is left in its session.
    """

    name = "local"
    enforces_timeout = True
    has_queue = False
    outlives_this_machine = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = ProcessTable(self._on_exit, self.local_workdir)
        self._report: Callable[[Job, BackendState], None] | None = None
        self._machine: Machine | None = None
        if self.config:
            warnings.warn(_unknown_keywords(self.config), XquteWarning, stacklevel=2)

    def reserve(self, job: Job, others: Iterable[Job]) -> bool:
        """Take cores, memory and graphics processors, for jobs that are said to need some."""
        if self.resources is None and job.resources is None:
            return True
        wanted = self.resources_of(job)
        if self._machine is None:
            self._machine = Machine.detect()
        if why := impossible(wanted, self._machine):
            raise SubmitError(why)
        held = [
            Holding(self.resources_of(other), other.gpus)
            for other in others
            if other is not job and not (self.resources is None and other.resources is None)
        ]
        gpus = self._machine.fit(wanted, held)
        if gpus is not None:
            job.gpus = gpus
        return gpus is not None

    @property
    def leaves_events(self) -> bool:
        """Whether jobs announce changes: only where a subclass starts them by other means."""
        return type(self).submit_job is not LocalScheduler.submit_job

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Tell `report` of each start and exit, at once."""
        self._report = report
        self._table.attach(asyncio.get_running_loop())

    async def close(self) -> None:
        """Stop watching; processes run on, but those that are about to end are waited for."""
        await self._table.drain(_DRAIN_S)
        self._table.detach()
        self._report = None

    async def submit_job(self, job: Job) -> int | str:
        """Start the wrapper of a job; give its process id.

        Raises:
            SubmitError: If there is no process; transient if for want of memory or processes.
        """
        text = self._write_wrapper(job)
        folder = self.mounted_dir(job)
        script = f"{folder}/{self.wrapper_name}"
        pid = None
        # `$$` in code of a user's is to be the job's own shell.
        if PLAIN in text and not self.jobcmd_wrapper_init:
            pid = self._table.fork(script, job, self.claim_tag(job), folder)
        if pid is None:
            pid = self._start(script, job)
        if self._report is not None:
            self._report(job, BackendState(Phase.RUNNING))
        return pid

    def _start(self, script: str, job: Job) -> int:
        try:
            return self._table.spawn([JOBCMD_WRAPPER_LANG, "-p", script], job)
        except (BlockingIOError, MemoryError) as exc:
            raise SubmitError(f"No process can be made: {exc}", transient=True) from exc
        except OSError as exc:
            raise SubmitError(f"{JOBCMD_WRAPPER_LANG} cannot be started: {exc}") from exc

    def _on_exit(self, pid: int, job: Job, rc: int | None) -> None:
        if self._report is not None:
            self._report(job, BackendState(Phase.ENDED, rc, jid=pid))
        elif rc is not None and rc > SIGNAL_BASE:
            # Nobody watches, and a wrapper that was killed has told nothing.
            tag = self.claim_tag(job)
            _protocol.write_end(job.local_dir, tag, rc, JobStatus.FAILED, JobCause.SIGNAL)

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Find the wrappers that have claimed a start, also those that are gone."""
        found = {}
        for key in keys:
            match = re.fullmatch(_KEY, key)
            if match is None:
                continue
            run_id, index, attempt = match.groups()
            claim = _protocol.read_start_claim(
                f"{self.local_workdir}/{index}", f"{run_id}-{attempt}"
            )
            if claim is not None and not claim.revoked:
                found[key] = claim.pid
        return found

    async def reattach(self, jobs: Sequence[Job]) -> None:
        """Hear of the exits of wrappers that another process has started."""
        for job in jobs:
            pid = _as_pid(job.jid)
            if pid is not None:
                self._table.adopt(pid, job, self.claim_tag(job), self.mounted_dir(job))

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether the wrapper of the job still runs, whoever has started it."""
        pid = _as_pid(job.jid)
        if pid is None:
            return False
        mine = self._table.is_running(pid, job)
        if mine is not None:
            return mine
        claims = _protocol.read_start_claims(job.local_dir)
        known = [(claim, ended) for claim, ended in claims if claim.pid == pid]
        if known:
            # It may have been too young for that when it was to be taken over.
            self._table.adopt(pid, job, self.claim_tag(job), self.mounted_dir(job))
            return any(not ended and _protocol.claim_is_alive(claim) for claim, ended in known)
        # It may be about to claim its start.
        script = f"{self.mounted_dir(job)}/{self.wrapper_name}"
        return await runs_script(pid, script)

    async def kill_job(self, job: Job) -> None:
        """End a job: TERM, the grace period, KILL; return when it is gone."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.kill_grace_s
        pause_s = 0.005
        await self._end([job], force=False)
        while await self.job_is_running(job):
            if loop.time() > deadline_s:
                await self._end([job], force=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.1)

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Send TERM, or KILL, to the process groups of the jobs."""
        if type(self).kill_job is not LocalScheduler.kill_job:
            await super().kill_jobs(jobs, force)
        else:
            await self._end(jobs, force=force)

    async def _end(self, jobs: Sequence[Job], *, force: bool) -> None:
        running = [job for job in jobs if await self.job_is_running(job)]
        pids = {pid for job in running if (pid := _as_pid(job.jid)) is not None}
        if force:
            self._table.kill(pids)
        else:
            for pid in pids:
                self._table.terminate(pid)


def _as_pid(jid: int | str | None) -> int | None:
    """The process id in a native job id; None for anything that is none."""
    text = str(jid)
    return int(text) if text.isascii() and text.isdigit() and int(text) > 1 else None


def _unknown_keywords(config: dict[str, Any]) -> str:
    known = [name for name in inspect.signature(Scheduler).parameters if name != "config"]
    words = []
    for name in config:
        close = difflib.get_close_matches(name, known, n=1)
        words.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return f"The local scheduler does not know {', '.join(words)}; it is ignored"
