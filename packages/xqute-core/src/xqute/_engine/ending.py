"""What happens when an attempt has ended: the verdict, the hooks, another attempt or the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from .. import _faults
from ..defaults import JobCause, JobErrorStrategy, JobOutcome, JobStatus
from ..job import Job
from ..utils import logger
from .lifecycle import HOOK_OF_OUTCOME, End, Retry, plan_retry
from .run import ENDED, Run

__all__ = ["Ending"]


class Ending:
    """Brings jobs from the end of an attempt to the next one, or to their end for good.

    Args:
        run: The run.
        retry_lost: Whether a job whose fate is unknown may be run again.
        queue: Called with a job that is to be submitted again.
        close: Called with a job that has ended for good, after its hooks.
        halt: Called with a job whose failure is to end the run.
    """

    def __init__(
        self,
        run: Run,
        *,
        retry_lost: bool,
        queue: Callable[[Job], None],
        close: Callable[[Job], None],
        halt: Callable[[Job], None],
    ) -> None:
        self._run = run
        self._retry_lost = retry_lost
        self._queue = queue
        self._close_job = close
        self._halt = halt
        self._backoffs: dict[Job, asyncio.TimerHandle] = {}

    def finish(self, job: Job, end: End) -> None:
        """The attempt has ended, wherever it was: say so, and see to what follows."""
        job.rc = end.rc
        job.ended_at = time.time()
        self._run.transition(job, end.status)
        self._pass_verdict(job, end)

    def adopt(self, job: Job, end: End, ended_at: float) -> None:
        """A job has succeeded in an earlier run: its hook is called, and that is all.

        Args:
            job: The job.
            end: How it ended.
            ended_at: When (seconds since the epoch); 0: nobody has noted it.
        """
        self._run.files.upload(job, partial(self._adopt, job, end, ended_at))

    def _adopt(self, job: Job, end: End, ended_at: float) -> None:
        job.adopted = True
        job.rc, job.ended_at = end.rc, ended_at or None
        job.outcome, job.cause = end.outcome, end.cause
        self._run.transition(job, end.status)
        hook = HOOK_OF_OUTCOME[end.outcome]
        if hook in self._run.hooks:
            self._run.call_hook(job, hook)
            self._run.chains.then(job, partial(self._follow_up, job, end, None))
        else:
            self._let_go(job)

    def finish_as_set(self, job: Job, *, tell: bool) -> None:
        """A plugin has set the terminal status that the job has; nothing is tried again.

        Args:
            job: The job.
            tell: Whether the hook for such an end is called.
        """
        self._run.files.upload(job, partial(self._finish_as_set, job, tell=tell))

    def _finish_as_set(self, job: Job, *, tell: bool) -> None:
        succeeded = job.current_status is JobStatus.FINISHED
        job.outcome = JobOutcome.SUCCEEDED if succeeded else JobOutcome.FAILED
        job.cause, job.reason = JobCause.PLUGIN, "a plugin said so"
        job.ended_at = time.time()
        self._run.journal.ended(job)
        if tell:
            self._run.call_hook(job, HOOK_OF_OUTCOME[job.outcome])
        self._run.chains.then(job, partial(self._close, job))

    def _pass_verdict(self, job: Job, end: End) -> None:
        job.outcome, job.cause, job.reason = end.outcome, end.cause, end.reason
        self._run.journal.ended(job)
        _faults.reach("before-hooks")
        retry = None
        if not self._run.is_doomed(job):
            scheduler = self._run.scheduler
            strategy, num_retries = scheduler.error_strategy, scheduler.num_retries
            retry = plan_retry(job, end, strategy, num_retries, retry_lost=self._retry_lost)
        if retry is not None:
            self._run.transition(job, JobStatus.RETRYING)
        hook = HOOK_OF_OUTCOME.get(end.outcome)
        if hook is not None:
            self._run.call_hook(job, hook)
        self._run.chains.then(job, partial(self._follow_up, job, end, retry))

    def _follow_up(self, job: Job, end: End, retry: Retry | None) -> None:
        """After the terminal hook: it may have set another status."""
        _faults.reach("after-hooks")
        status = job.current_status
        if status is JobStatus.RETRYING and not self._run.is_doomed(job):
            # A plugin may ask for another attempt where none was planned.
            self._try_again(job, retry or Retry(0.0, charged=True))
        elif status is JobStatus.FAILED and end.status is JobStatus.FINISHED:
            why = "a plugin judged it a failure"
            self._pass_verdict(job, End(JobOutcome.FAILED, end.rc, JobCause.PLUGIN, why))
        else:
            if status is JobStatus.RETRYING:
                self._run.transition(job, JobStatus.FAILED)
            elif status is JobStatus.FINISHED and end.status is JobStatus.FAILED:
                job.outcome, job.cause = JobOutcome.SUCCEEDED, JobCause.PLUGIN
                job.reason = "a plugin judged it a success"
                self._run.journal.ended(job)
            self._close(job)

    def _try_again(self, job: Job, retry: Retry) -> None:
        if retry.charged:
            job.failures += 1
        else:
            job.restarts += 1
        logger.debug("%r is tried again in %.1f s: %s", job, retry.delay_s, job.reason)
        self.renew_attempt(job)
        if retry.delay_s:
            timer = self._run.loop.call_later(retry.delay_s, self._back_again, job)
            self._backoffs[job] = timer
        else:
            self._queue(job)

    def _back_again(self, job: Job) -> None:
        del self._backoffs[job]
        self._queue(job)

    def renew_attempt(self, job: Job) -> None:
        """Make the next attempt of a job the current one; the files of the last are put aside."""
        put_aside = partial(_put_aside, job, job.trial_count)
        self._run.files.do(job, put_aside, lambda _: None)
        job.forget_attempt()
        job.trial_count += 1
        job.run_id = None
        job.last_cause = job.cause or job.last_cause
        job.outcome = job.cause = None
        job.reason = ""
        job.submitted_at = job.started_at = job.ended_at = None

    def cancel_backoff(self, job: Job) -> bool:
        """Cancel a job that waits for its time to be tried again; False: it does not."""
        timer = self._backoffs.pop(job, None)
        if timer is None:
            return False
        timer.cancel()
        if job.current_status in ENDED:
            self.finish_as_set(job, tell=False)
        else:
            self.finish(job, End.cancelled())
        return True

    def release_backoffs(self, release: Callable[[Job], None]) -> None:
        """Let go of all that wait for their time to be tried again."""
        for job, timer in self._backoffs.items():
            timer.cancel()
            release(job)
        self._backoffs.clear()

    def cancel_backoffs(self) -> None:
        """Cancel all that wait for their time to be tried again."""
        for job in list(self._backoffs):
            self.cancel_backoff(job)

    def _close(self, job: Job) -> None:
        self._run.journal.hooked(job)
        _faults.reach_soon("after-hooked")
        self._let_go(job)

    def _let_go(self, job: Job) -> None:
        job.driver = None
        self._run.doomed.discard(job)
        failed = job.current_status is JobStatus.FAILED
        self._close_job(job)
        if (
            failed
            and self._run.scheduler.error_strategy == JobErrorStrategy.HALT
            and not self._run.is_stopping
        ):
            self._halt(job)


def _put_aside(job: Job, trial: int) -> None:
    try:
        job.put_aside(trial)
    except OSError as exc:
        logger.warning("The files of attempt %d of %r stay: %s", trial, job, exc)
