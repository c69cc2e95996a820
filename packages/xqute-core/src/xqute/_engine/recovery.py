"""What earlier runs have left: each such job is adopted, watched again, or run again.

A job that is fed and that the ledger knows comes here first. If it has ended it is adopted or run
again at once. If not, its attempt may be alive, or may yet start: only when that is known, or made
impossible, is anything submitted for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from .. import _protocol
from ..defaults import JobOutcome, JobStatus
from ..errors import JobChangedError
from ..job import Job
from ..scheduler import Phase
from ..utils import logger
from .ending import Ending
from .flight import Flight
from .ledger import Entry, Ledger
from .lifecycle import End, backoff_s
from .run import Run
from .settle import read_start
from .watching import Watching

__all__ = ["Recovery"]


class _Case(NamedTuple):
    """A job of which no end is known, and what is known of its last attempt."""

    job: Job
    entry: Entry
    #: Whether it is to be ended, and then run again.
    is_unwanted: bool


class Recovery:
    """Decides about jobs that earlier runs had.

    Args:
        run: The run.
        ending: Told of successes that are adopted.
        watching: Given the attempts that are alive.
        ledger: What earlier runs have left; a job is taken out of it when it is decided about.
        resume: Whether what has succeeded is adopted; otherwise it runs again.
        on_change: What to do about a job that is alive and has another command now: "error", or
            "rerun": end it, and run the new one.
        queue: Called with a job that is to run again.
        kill: Called with attempts that are to be ended.
    """

    def __init__(
        self,
        run: Run,
        ending: Ending,
        watching: Watching,
        *,
        ledger: Ledger,
        resume: bool,
        on_change: str,
        queue: Callable[..., None],
        kill: Callable[[list[Flight]], None],
    ) -> None:
        self._run = run
        self._ending = ending
        self._watching = watching
        self._entries = ledger.entries
        self._resume = resume
        self._on_change = on_change
        self._queue = queue
        self._kill = kill
        self._cases: dict[Job, _Case] = {}
        self._task: asyncio.Task[None] | None = None
        self._n_failures = 0

    def knows(self, job: Job) -> bool:
        """Whether an earlier run had this job."""
        return job.index in self._entries

    async def take(self, job: Job) -> None:
        """Decide about a job that an earlier run had, or have it found out.

        Raises:
            JobChangedError: If it may be alive and has another command now.
        """
        entry = self._entries.pop(job.index)
        job.run_id, job.trial_count, job.gpus = entry.run_id, entry.attempt, entry.gpus
        is_same = entry.digest == self._run.digest(job)
        files = self._run.files
        end = await files.call(job, partial(self._end_of, job, entry, job.local_dir))
        if end is None and job.staging is not None:
            # It may have been uploaded and removed here before the journal was told, or elsewhere.
            end = await files.call_far(job, partial(self._end_of, job, entry, str(job.metadir)))
        if end is None:
            if not is_same and self._on_change == "error" and await self._may_live(job, entry):
                self._entries[job.index] = entry
                raise JobChangedError(
                    f"Job {job.index} is still there from an earlier run (native id {entry.jid}), "
                    "and its command, environment or options have changed. Feed what it was, or "
                    'use on_change="rerun" to have it ended and the new one run'
                )
            self._cases[job] = _Case(job, entry, entry.killed or not is_same)
            self._run.unsettled.add(job)
            self._settle_soon()
        elif self._resume and is_same and end.outcome is JobOutcome.SUCCEEDED:
            self._ending.adopt(job, end, entry.ended_at)
        else:
            self._run_again(job)

    def _end_of(self, job: Job, entry: Entry, folder: str) -> End | None:
        """Give how the attempt has ended, by the journal or by the job's own word in its folder."""
        if entry.outcome is not None:
            return End(entry.outcome, entry.rc, entry.cause)
        if not self._run.scheduler.uses_wrapper:
            return None
        try:
            record = _protocol.read_end_record(folder, entry.tag)
        except OSError as exc:
            logger.warning("The end of %r cannot be read: %s", job, exc)
            return None
        if record is None:
            return None
        return End.from_record(record, None, kill=entry.killed, timeout=False)

    def _run_again(self, job: Job, *, first: bool = False) -> None:
        job.run_id, job.trial_count = None, 0
        job.adopted = False
        self._queue(job, first=first)

    # --- attempts without an end ---------------------------------------------------------------

    def _settle_soon(self) -> None:
        if self._task is None:
            self._task = self._run.loop.create_task(self._settle())
            self._task.add_done_callback(self._on_settled)

    def _on_settled(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if self._cases:
            self._settle_soon()  # some came late, or the event loop is ending and cancels all tasks
        if not task.cancelled():
            task.result()

    async def _settle(self) -> None:
        """Find out about all cases together. As long as the backend does not tell, they wait."""
        await asyncio.sleep(0)  # more may be fed in this turn
        while self._cases:
            cases = list(self._cases.values())
            try:
                await self._settle_some(cases)
            except Exception as exc:  # noqa: BLE001  # a backend may raise anything: unknown, then
                if self._run.is_stopping:
                    self._give_up(cases, exc)
                    return
                if self._n_failures == 0:
                    logger.warning("What is left of earlier runs is not known yet: %s", exc)
                await asyncio.sleep(backoff_s(self._n_failures))
                self._n_failures += 1
            else:
                self._n_failures = 0

    def _give_up(self, cases: list[_Case], exc: Exception) -> None:
        end = End.lost(f"it was not found out what became of it: {exc}")
        for case in cases:
            self._drop(case)
            self._ending.finish(case.job, end)

    def _drop(self, case: _Case) -> None:
        del self._cases[case.job]
        self._run.unsettled.discard(case.job)

    async def _settle_some(self, cases: list[_Case]) -> None:
        await self._find(cases)
        alive = []
        # Those that run again come before what was fed later, so the first is put there last.
        for case in reversed(cases):
            if case.entry.jid is None and await self._never_starts(case.job, case.entry):
                self._drop(case)
                self._run_again(case.job, first=True)
            else:
                alive.append(case)
        await self._follow(alive[::-1])

    async def _follow(self, cases: list[_Case]) -> None:
        """Watch attempts that may be alive like those of this run; end those that are unwanted."""
        flights = [await self._take_off(case) for case in cases]
        try:
            await self._run.scheduler.reattach([case.job for case in cases])
        except Exception as exc:  # noqa: BLE001  # whatever it is: they are asked about all the same
            logger.warning("%s: cannot take over jobs: %r", self._run.scheduler.name, exc)
        unwanted = []
        for case, flight in zip(cases, flights, strict=True):
            self._run.transition(case.job, JobStatus.SUBMITTED)
            self._watching.is_submitted(flight)
            if flight.is_closed:
                continue
            self._watching.reconciler.add(flight, 0.0)
            if case.is_unwanted or self._run.is_doomed(case.job):
                flight.kill_requested = True
                unwanted.append(flight)
        self._kill(unwanted)

    async def _take_off(self, case: _Case) -> Flight:
        self._drop(case)
        case.job.adopted = True
        if case.entry.jid is not None:
            self._run.assign_jid(case.job, case.entry.jid)
        flight = self._watching.take_off(case.job)
        began = partial(_protocol.start_time, case.job.local_dir, flight.tag)
        flight.began_at = await self._run.files.call(case.job, began)
        flight.on_landing = partial(self._on_landing, flight, case)
        return flight

    async def _find(self, cases: list[_Case]) -> None:
        """Ask for the native ids of submissions whose answers were not recorded."""
        scheduler = self._run.scheduler
        keys = {case: self._key(case) for case in cases if case.entry.jid is None}
        if keys:
            found = await scheduler.find_submitted(sorted(set(keys.values())))
            for case, key in keys.items():
                if key in found:
                    case.entry.jid = scheduler.id_in_submission(found[key], case.entry.position)

    def _key(self, case: _Case) -> str:
        return case.entry.key or self._run.scheduler.submission_key(case.job)

    async def _never_starts(self, job: Job, entry: Entry) -> bool:
        """Make sure that an attempt that the backend does not know never starts, if that can be.

        Raises:
            OSError: If its claim can be neither made nor read.
        """
        if not self._run.scheduler.uses_wrapper:
            return True
        return await self._run.files.call(job, partial(self._revoke, job, entry))

    @staticmethod
    def _revoke(job: Job, entry: Entry) -> bool:
        if _protocol.revoke_start(job.local_dir, entry.tag, "driver"):
            return True
        claim = _protocol.read_start_claim(job.local_dir, entry.tag)
        return claim is not None and claim.revoked

    async def _may_live(self, job: Job, entry: Entry) -> bool:
        """Whether an attempt without an end is alive, or that cannot be known."""
        await self._find([_Case(job, entry, is_unwanted=True)])
        if entry.jid is None:
            return not await self._never_starts(job, entry)
        job.jid = entry.jid
        await self._run.scheduler.reattach([job])
        state = (await self._run.scheduler.poll_jobs([job])).get(job)
        return state is None or state.phase in (Phase.PENDING, Phase.RUNNING)

    def _on_landing(self, flight: Flight, case: _Case, end: End) -> bool:
        """The attempt is over: decide whether the job runs again, and this was not its end."""
        job = case.job
        if self._run.is_doomed(job):
            return False
        if not case.is_unwanted and not (
            # Nobody has seen it since, and it is certain that it is no more.
            end.outcome is JobOutcome.LOST and not flight.was_seen and self._is_no_more(flight)
        ):
            return False
        job.started_at = job.submitted_at = None
        job.enter(JobStatus.INIT)
        if case.is_unwanted:
            self._run.chains.add(job, partial(self._until_gone, job))
        self._run.chains.then(job, partial(self._run_again, job, first=True))
        return True

    async def _until_gone(self, job: Job) -> None:
        """Wait until the backend has an attempt no more that was ended, and has told its end.

        What it has left running in the background may live until the backend clears it away.
        """
        scheduler = self._run.scheduler
        until_s = self._run.loop.time() + scheduler.kill_timeout_s
        pause_s = 0.05
        while self._run.loop.time() < until_s:
            if self._run.is_detached or self._run.is_doomed(job):
                return
            try:
                async with asyncio.timeout_at(until_s):
                    if not await scheduler.job_is_running(job):
                        return
            except Exception as exc:  # noqa: BLE001  # a backend may raise anything: unknown, then
                logger.debug("%s: is %r still there? %r", scheduler.name, job, exc)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)
        logger.warning("%s: %r is still there, and runs again", scheduler.name, job)

    def _is_no_more(self, flight: Flight) -> bool:
        """Whether it is proven that no process of an attempt is left: on this machine alone."""
        if flight.job.is_far:
            return False
        claim = read_start(flight)
        return claim is not None and _protocol.claim_is_alive(claim) is False

    async def detach(self, release: Callable[[Job], None]) -> None:
        """Let go of the jobs of which nothing is known yet."""
        for case in list(self._cases.values()):
            self._drop(case)
            release(case.job)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
