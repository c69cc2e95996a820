"""What became of jobs: by their own word, the queue and accounting, in this order."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .. import _protocol
from ..errors import SchedulerError
from ..job import Job
from ..scheduler import BackendState, Phase
from ..utils import logger
from . import restarts
from .queue import Queue, QueueRow, Snapshot, has_ended

if TYPE_CHECKING:
    from .scheduler import ClusterScheduler

__all__ = ["Asking"]

#: How many missing jobs are remembered until old ones are forgotten, and what is old.
_MANY_MISSED, _FORGET_S = 1000, 600.0


class Asking:
    """Tells where jobs are and how they ended.

    Args:
        scheduler: Whose they are; it knows its backend's words.
        queue: That of the backend.
    """

    def __init__(self, scheduler: ClusterScheduler, queue: Queue) -> None:
        self._scheduler = scheduler
        self._queue = queue
        #: Since when (monotonic) attempts are missing, by their submission keys.
        self._missed: dict[str, float] = {}
        self._told_reasons: set[str] = set()

    async def poll(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Tell about jobs from one look at the queue, which may serve several questions.

        A job that has left the queue, or ended there, is GONE at first: its files may take a moment
        to be seen. After `lost_grace_s` it is told how it ended, as far as the queue or accounting
        knows. Jobs of which nothing can be told yet are left out.

        Raises:
            SchedulerError: If the queue did not answer.
        """
        states = {job: BackendState(Phase.GONE) for job in jobs if job.jid is None}
        records = {job: self._scheduler.read_end(job) for job in jobs if job.jid is not None}
        for job in [job for job, record in records.items() if record and record.rc == 0]:
            del records[job]  # the queue knows nothing better
            states[job] = BackendState(Phase.ENDED, 0)
        queue = await self._look_at_queue(records) if records else self._queue.last
        if queue is None:
            return states
        over: dict[Job, QueueRow | None] = {}
        for job, record in records.items():
            row = self._scheduler.row_of(job, queue.rows)
            if not (has_ended(row) or self._queue.is_fresh(queue, str(job.jid))):
                continue
            if row is not None and not has_ended(row):
                self._missed.pop(self._scheduler.submission_key(job), None)
                self._tell_why_it_waits(job, row)
                states[job] = row.state
            elif record is None and self._is_awaited(job, row):
                states[job] = BackendState(Phase.GONE)
            else:
                over[job] = row
        states.update(self._settle_restarts(over, records))
        states.update(await self._explain(over, records, queue))
        return states

    async def _look_at_queue(
        self, records: Mapping[Job, _protocol.EndRecord | None]
    ) -> Snapshot | None:
        """Look for these jobs, of which some have told their end; None: it is too early."""
        seen = self._queue.last.rows if self._queue.last else {}
        jids = []
        for job, record in records.items():
            row = self._scheduler.row_of(job, seen)
            if not has_ended(row):
                jids.append(str(job.jid))
                if record is not None or self._may_be_over(job, row):
                    self._queue.touch(str(job.jid), hurry=True)
        if not jids:
            return self._queue.last
        return await self._queue.look(jids, self._scheduler.recheck_interval)

    def _may_be_over(self, job: Job, row: QueueRow | None) -> bool:
        """Whether a start of a job has ended, and it is not known to wait for another."""
        if row is not None and row.state.phase is Phase.PENDING:
            return False
        return self._scheduler.may_restart(job) and self._read_last_end(job) is not None

    def _read_last_end(self, job: Job) -> _protocol.EndRecord | None:
        return restarts.read_last_end(job.local_dir, self._scheduler.claim_tag(job))

    def _is_awaited(self, job: Job, row: QueueRow | None) -> bool:
        """Whether what a job has left, which is over, may still come to be seen."""
        if self._missed_s(job) >= self._scheduler.lost_grace_s:
            return False
        last = None if row is None else self._read_last_end(job)
        return row is None or last is None or last.rc != row.state.rc

    def _settle_restarts(
        self, over: dict[Job, QueueRow | None], records: Mapping[Job, _protocol.EndRecord | None]
    ) -> dict[Job, BackendState]:
        """Take out those that the backend has started again or may have, and tell their ends."""
        states = {}
        for job in [job for job in over if records[job] is None]:
            last = self._read_last_end(job)
            if last is not None:
                restarts.settle(job.local_dir, self._scheduler.claim_tag(job), last)
                row = over.pop(job)
                ended = BackendState(Phase.ENDED, last.rc)
                has_succeeded = last.rc == 0 and not last.cause
                states[job] = ended if row is None or has_succeeded else row.state
        return states

    def _missed_s(self, job: Job) -> float:
        """For how long the queue has not had a job any more."""
        now_s = time.monotonic()
        since_s = self._missed.setdefault(self._scheduler.submission_key(job), now_s)
        if len(self._missed) > _MANY_MISSED:
            recent = {k: then_s for k, then_s in self._missed.items() if now_s - then_s < _FORGET_S}
            self._missed = recent
        return now_s - since_s

    async def _explain(
        self,
        over: Mapping[Job, QueueRow | None],
        records: Mapping[Job, _protocol.EndRecord | None],
        queue: Snapshot,
    ) -> dict[Job, BackendState]:
        """Say how jobs ended that the queue does not have, or has as ended."""
        untold = {
            str(job.jid)
            for job, row in over.items()
            if row is None or (row.state.rc is None and not row.state.cause)
        }
        told: Mapping[str, QueueRow | None] = {}
        lag_s = 0.0
        if untold:
            try:
                told = await self._scheduler.read_accounting(sorted(untold))
                lag_s = self._scheduler.accounting_lag_s
            except SchedulerError as exc:
                logger.debug("%s: no accounting: %s", self._scheduler.name, exc)
        states = {}
        for job, row in over.items():
            if str(job.jid) in told and told[str(job.jid)] is None:
                continue  # there was no time to ask for it
            heard = self._scheduler.row_of(job, told)
            if not has_ended(heard):  # accounting may never hear of an end, too
                if str(job.jid) in untold and self._missed_s(job) < lag_s:
                    continue
                heard = None
            best = heard or row
            state = best.state if best is not None else BackendState(Phase.GONE)
            if records[job] is None and not state.cause and not self._has_started(job):
                explained = self._scheduler.explain_no_start(job, state, queue.rows)
                # A file system that lags may hide that it has: its claim can be made only once.
                if explained.cause and self._never_starts(job):
                    state = explained
            states[job] = state
        return states

    def _has_started(self, job: Job) -> bool:
        start_claim = _protocol.start_claim_path(job.local_dir, self._scheduler.claim_tag(job))
        try:
            return _protocol.claim_exists(start_claim)
        except OSError:
            return True  # that is not known

    def _never_starts(self, job: Job) -> bool:
        """Make sure that a job that is over has not started; False: it has, or nobody knows."""
        try:
            return _protocol.revoke_start(job.local_dir, self._scheduler.claim_tag(job), "driver")
        except OSError:
            return False

    def _tell_why_it_waits(self, job: Job, row: QueueRow) -> None:
        if not row.waits_for_ever or job.reason == row.state.reason:
            return
        job.reason = row.state.reason
        if row.state.reason not in self._told_reasons:
            self._told_reasons.add(row.state.reason)
            logger.warning(
                "%s: %r cannot start, unless something is changed: %s",
                *(self._scheduler.name, job, row.state.reason),
            )
