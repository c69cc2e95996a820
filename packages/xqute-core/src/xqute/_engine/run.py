"""What the parts of the engine share: the scheduler, the hooks, and the one change of status."""

from __future__ import annotations

import asyncio
from functools import partial

from ..defaults import JobStatus
from ..job import Job
from ..plugin import HookTable
from ..scheduler import Scheduler
from ..utils import logger
from .chains import Chains
from .file_work import FileWork
from .journal import Journal
from .lifecycle import TRANSITIONS

__all__ = ["ENDED", "Run"]

ENDED = (JobStatus.FINISHED, JobStatus.FAILED)


class Run:
    """One run of an engine.

    Attributes:
        scheduler: The backend.
        hooks: The plugins.
        chains: What is still to be done for each job, in order.
        files: What reads and writes the files of jobs.
        is_stopping: Whether nothing new is to be submitted.
        doomed: Jobs that are to be cancelled when they come by.
        unsettled: Jobs that the backend may have from an earlier run; they take up room.
        is_detached: Whether jobs are to be let go of, wherever they are.
        journal: Where it is written what happens, before it does.
    """

    def __init__(self, scheduler: Scheduler, hooks: HookTable, journal: Journal) -> None:
        self.scheduler = scheduler
        self.hooks = hooks
        self.journal = journal
        self.chains = Chains()
        self.files = FileWork()
        self.is_stopping = False
        self.is_detached = False
        self.doomed: set[Job] = set()
        self.unsettled: set[Job] = set()
        self.loop = asyncio.get_running_loop()

    def transition(self, job: Job, status: JobStatus) -> None:
        """Change the status of a job: the only place where the engine does.

        Raises:
            RuntimeError: If a job cannot go there from where it is; the engine is at fault.
        """
        if status not in TRANSITIONS[job.current_status]:
            here = job.current_status.name
            raise RuntimeError(f"{job!r} cannot go from {here} to {status.name}")
        job.enter(status)

    def assign_jid(self, job: Job, jid: int | str) -> None:
        """Take note of the native id of a job, in the journal and in its file."""
        self.journal.accepted(job, jid)
        try:
            job.jid = jid
        except OSError as exc:
            logger.warning("The id %s of %r cannot be written: %s", jid, job, exc)

    def digest(self, job: Job) -> str:
        """Give the digest of a job's command and of all that makes it the same job or another."""
        scheduler = self.scheduler
        cwd = scheduler.cwd if job.cwd is None else job.cwd
        parts = [
            None if cwd is None else str(cwd),
            scheduler.prescript,
            scheduler.postscript,
            job.scheduler_opts and sorted(map(str, job.scheduler_opts.items())),
            sorted((name, str(value)) for name, value in job.envs.items()) if job.has_envs else [],
        ]
        return self.journal.digest(job.cmd, parts)

    def call_hook(self, job: Job, hook: str, *args: object) -> None:
        """Have a hook called, after the job's earlier ones."""
        if hook in self.hooks:
            self.chains.add(job, partial(self._call, hook, job, args))

    async def _call(self, hook: str, job: Job, args: tuple[object, ...]) -> None:
        await self.hooks.acall(hook, self.scheduler, job, *args)

    async def ask_hook(self, job: Job, hook: str) -> bool:
        """Call a hook that may object; give whether none does.

        A hook that is given up at a stop counts as an objection.
        """
        try:
            return False not in await self.hooks.acall(hook, self.scheduler, job)
        except asyncio.CancelledError:
            return False

    def is_doomed(self, job: Job) -> bool:
        """Whether a job that is about to go on is to be cancelled instead."""
        return self.is_stopping or job in self.doomed
