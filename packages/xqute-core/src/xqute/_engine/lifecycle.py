"""Where a job may go, how its end is judged, and what follows a failure. Pure."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from typing import NamedTuple

from .._protocol import EndRecord
from ..defaults import (
    MAX_BACKEND_RESTARTS,
    RC_LOST,
    RC_NOT_SUBMITTED,
    RC_UNKNOWN,
    SIGNAL_BASE,
    JobCause,
    JobErrorStrategy,
    JobOutcome,
    JobStatus,
)
from ..errors import InvalidJobError, SubmitError
from ..job import Job
from ..scheduler import BackendState

__all__ = [
    "HOOK_OF_OUTCOME",
    "TRANSITIONS",
    "End",
    "Retry",
    "backoff_s",
    "plan_retry",
]

_S = JobStatus
_O = JobOutcome

#: Where a job may go from where it is.
TRANSITIONS: Mapping[JobStatus, frozenset[JobStatus]] = {
    #: Submitted at once: by an earlier run.
    _S.INIT: frozenset({_S.QUEUED, _S.SUBMITTED, _S.FINISHED, _S.FAILED}),
    _S.QUEUED: frozenset({_S.SUBMITTED, _S.FINISHED, _S.FAILED}),
    _S.SUBMITTED: frozenset({_S.RUNNING, _S.KILLING, _S.FINISHED, _S.FAILED}),
    _S.RUNNING: frozenset({_S.KILLING, _S.FINISHED, _S.FAILED}),
    _S.KILLING: frozenset({_S.FINISHED, _S.FAILED}),
    #: A plugin may call a success a failure.
    _S.FINISHED: frozenset({_S.FAILED}),
    _S.FAILED: frozenset({_S.RETRYING}),
    _S.RETRYING: frozenset({_S.QUEUED, _S.FINISHED, _S.FAILED}),
}

#: The highest number of a signal; a higher exit code is a program's own.
_MOST_SIGNAL = 64

#: Nobody is told of a job that was cancelled: it never began.
HOOK_OF_OUTCOME: Mapping[JobOutcome, str] = {
    _O.SUCCEEDED: "on_job_succeeded",
    _O.FAILED: "on_job_failed",
    _O.TIMEOUT: "on_job_failed",
    _O.KILLED: "on_job_killed",
    _O.SUBMIT_FAILED: "on_job_failed",
    _O.LOST: "on_job_failed",
}

_ENDS_FINISHED = frozenset({_O.SUCCEEDED, _O.KILLED, _O.CANCELLED})
#: Of these it is certain that the command ran, or at least its wrapper.
_RAN = frozenset({_O.SUCCEEDED, _O.FAILED, _O.TIMEOUT, _O.KILLED})


class End(NamedTuple):
    """How an attempt ended."""

    outcome: JobOutcome
    rc: int
    cause: str | None = None
    reason: str = ""
    #: It would end like this again: trying again is no use.
    hopeless: bool = False
    #: Whether it got as far as its start claim.
    began: bool = True
    #: Whether the backend may know better: why it failed, or what has told it to go.
    doubtful: bool = False

    @property
    def status(self) -> JobStatus:
        """The status that goes with the outcome."""
        return _S.FINISHED if self.outcome in _ENDS_FINISHED else _S.FAILED

    @property
    def ran(self) -> bool:
        """Whether the attempt certainly began to run."""
        return self.began and self.outcome in _RAN

    @classmethod
    def from_record(
        cls, record: EndRecord, state: BackendState | None, *, kill: bool, timeout: bool
    ) -> End:
        """Judge an end that the wrapper has recorded.

        Args:
            record: The wrapper's word.
            state: What the backend says of it, if it was asked.
            kill: Whether the kill of the job was requested.
            timeout: Whether it was being ended for its timeout.
        """
        if kill and record.rc != 0:
            return cls(_O.KILLED, record.rc, JobCause.REQUESTED, "killed on request")
        # A command that was faster than our signal was not ended by it; nor by what became of its
        # machine, of which the backend tells. But its outputs may not have come from there (SETUP).
        unhurt = record.rc == 0 and not record.cause
        if record.cause == JobCause.TIMEOUT or (timeout and not unhurt):
            return cls(_O.TIMEOUT, record.rc, JobCause.TIMEOUT, "ended at its timeout")
        if state is not None and state.cause and (not unhurt or state.cause == JobCause.SETUP):
            return cls(_O.FAILED, record.rc, state.cause, state.reason)
        if record.rc == 0 and record.status == _S.FINISHED:
            return cls(_O.SUCCEEDED, 0, doubtful=not (unhurt or kill))
        if record.cause in (JobCause.SETUP, JobCause.NOT_STARTED):
            why = "its command was not started, see its stderr"
            return cls(_O.FAILED, record.rc, record.cause, why)
        return cls.from_exit_code(record.rc)

    @classmethod
    def from_exit_code(cls, rc: int) -> End:
        """Judge an exit code alone."""
        if rc == 0:
            return cls(_O.SUCCEEDED, 0)
        cause, words = JobCause.EXIT_CODE, f"exit code {rc}"
        if SIGNAL_BASE < rc <= SIGNAL_BASE + _MOST_SIGNAL:
            cause, words = JobCause.SIGNAL, f"{words}{_signal_words(rc)}"
        return cls(_O.FAILED, rc, cause, words, doubtful=True)

    @classmethod
    def from_state(cls, state: BackendState, *, kill: bool, timeout: bool) -> End:
        """Judge an end of which only the backend's word is known."""
        if state.cause == JobCause.SUBMISSION:
            return cls(_O.SUBMIT_FAILED, RC_NOT_SUBMITTED, state.cause, state.reason)
        rc = RC_UNKNOWN if state.rc is None else state.rc
        if kill and rc != 0:
            return cls(_O.KILLED, rc, JobCause.REQUESTED, state.reason or "killed on request")
        if timeout and rc != 0:
            return cls(_O.TIMEOUT, rc, JobCause.TIMEOUT, state.reason or "ended at its timeout")
        if state.cause:
            return cls(_O.FAILED, rc, state.cause, state.reason)
        if state.rc is None:
            return cls.lost(state.reason or "the backend gives no exit code")
        return cls.from_exit_code(rc)

    @classmethod
    def lost(cls, reason: str, cause: str = JobCause.DISAPPEARED) -> End:
        """The fate of the attempt is unknown."""
        return cls(_O.LOST, RC_LOST, cause, reason)

    @classmethod
    def cancelled(cls) -> End:
        """The attempt never began, on request."""
        return cls(_O.CANCELLED, RC_UNKNOWN, JobCause.REQUESTED, "cancelled before it started")

    @classmethod
    def not_submitted(cls, exc: Exception) -> End:
        """The backend did not accept the attempt."""
        cause = getattr(exc, "cause", None) or JobCause.SUBMISSION
        hopeless = isinstance(exc, SubmitError | InvalidJobError)
        words = f"{type(exc).__name__}: {exc}"
        return cls(_O.SUBMIT_FAILED, RC_NOT_SUBMITTED, cause, words, hopeless)


def _signal_words(rc: int) -> str:
    try:
        return f" ({signal.Signals(rc - SIGNAL_BASE).name})"
    except ValueError:
        return ""


class Retry(NamedTuple):
    """That another attempt follows, and when."""

    delay_s: float
    charged: bool


def plan_retry(
    job: Job, end: End, strategy: JobErrorStrategy, num_retries: int, *, retry_lost: bool
) -> Retry | None:
    """Decide what follows a failed attempt; None: nothing, it is final.

    The user's retries count the job's own failures. What the backend did to it is made good a
    bounded number of times, whatever the user's strategy.
    """
    if end.outcome in _ENDS_FINISHED or end.hopeless:
        return None
    if end.cause in (JobCause.PREEMPTED, JobCause.NODE_FAILED):
        if job.restarts < MAX_BACKEND_RESTARTS:
            return Retry(backoff_s(job.restarts), charged=False)
        return None
    wanted = strategy is JobErrorStrategy.RETRY if job.error_retry is None else job.error_retry
    allowed = num_retries if job.num_retries is None else job.num_retries
    if not wanted or job.failures >= allowed:
        return None
    if end.outcome is _O.LOST and not retry_lost:
        return None
    return Retry(0.0, charged=True)


def backoff_s(n_before: int, first_s: float = 0.5, most_s: float = 60.0) -> float:
    """Give the seconds to wait after `n_before` waits: doubling, capped, with jitter."""
    wait_s = min(most_s, first_s * 2.0 ** min(n_before, 30))
    return wait_s * random.uniform(0.75, 1.25)  # noqa: S311  # jitter is no secret
