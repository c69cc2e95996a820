"""How an attempt ended: the claims first, then the backend's word, then nobody knows."""

from __future__ import annotations

from .. import _protocol
from ..defaults import RC_LOST, SIGNAL_BASE, JobCause, JobOutcome, JobStatus
from ..scheduler import BackendState, Scheduler
from ..utils import logger
from .flight import Flight
from .lifecycle import End

__all__ = ["believe", "claim_lost", "judge", "read_start"]

_UNTOLD = "it has ended, but its exit code could not be stored (disk full?)"
#: What the wrapper exits with if it has not begun.
_RC_CLAIM_TAKEN, _RC_CLAIM_FAILED = 121, 122


def judge(
    flight: Flight, state: BackendState | None, scheduler: Scheduler, *, is_over: bool = False
) -> End | None:
    """Judge the end of an attempt; None: it has not ended, as far as anybody says.

    Args:
        flight: The attempt.
        state: What the backend says, if it said anything.
        scheduler: The backend.
        is_over: Whether the backend says that the attempt is over, so that there must be an end.
    """
    if not scheduler.uses_wrapper:
        if not is_over or state is None:
            return None
        if flight.kill_requested and state.rc is None and flight.job.started_at is None:
            return End.cancelled()
        kill = _is_killed(flight, state.rc)
        return End.from_state(state, kill=kill, timeout=flight.timed_out)
    end = _read_recorded_end(flight, state) or _read_foreign_end(flight)
    if end is not None or not is_over or state is None:
        return end
    return _settle_without_record(flight, state)


def _read_recorded_end(flight: Flight, state: BackendState | None) -> End | None:
    """Believe what the end claim says, if there is one."""
    try:
        record = _protocol.read_end_record(flight.job.local_dir, flight.tag)
    except OSError as exc:
        logger.warning("The end of %r cannot be read: %s", flight.job, exc)
        return None
    return None if record is None else believe(flight, record, state)


def believe(flight: Flight, record: _protocol.EndRecord, state: BackendState | None) -> End:
    """Give the end that a record of it tells; what the backend says adds why."""
    kill = _is_killed(flight, record.rc)
    return End.from_record(record, state, kill=kill, timeout=flight.timed_out)


def _is_killed(flight: Flight, rc: int | None) -> bool:
    """Whether a kill was asked for; a plugin that refused it may have killed the job by itself."""
    by_plugin = flight.kill_refused and rc is not None and rc > SIGNAL_BASE
    return flight.kill_requested or by_plugin


def read_start(flight: Flight) -> _protocol.StartClaim | None:
    """Give who has started the attempt, or revoked it; None: nobody, or it cannot be read."""
    try:
        return _protocol.read_start_claim(flight.job.local_dir, flight.tag)
    except OSError as exc:
        logger.warning("The start of %r cannot be read: %s", flight.job, exc)
        return None


def _read_foreign_end(flight: Flight) -> End | None:
    """Believe the status file of a job that was not run by our wrapper."""
    job = flight.job
    status = (job.read_file("job.status") or "").strip()
    start_claim = _protocol.start_claim_path(job.local_dir, flight.tag)
    if status not in ("6", "7") or _protocol.claim_exists(start_claim):
        return None
    rc = job.rc
    if flight.kill_requested:
        return End(JobOutcome.KILLED, rc, JobCause.REQUESTED, "killed on request")
    if status == "6":
        return End(JobOutcome.SUCCEEDED, max(rc, 0))
    if rc > 0:
        return End.from_exit_code(rc)
    return End(JobOutcome.FAILED, rc, JobCause.EXIT_CODE, doubtful=True)


def _has_begun(flight: Flight) -> bool:
    """Whether a wrapper has the start claim, as far as that can be seen."""
    if flight.job.started_at is not None:
        return True
    claim = read_start(flight)
    if claim is not None:
        return not claim.revoked
    try:
        return _protocol.claim_exists(_protocol.start_claim_path(flight.job.local_dir, flight.tag))
    except OSError:
        return True


def _settle_without_record(flight: Flight, state: BackendState) -> End:
    """The wrapper is over without a record: win the end claim, and write what is known."""
    job = flight.job
    kill = _is_killed(flight, state.rc)
    end = End.from_state(state, kill=kill, timeout=flight.timed_out)
    end = end._replace(began=_has_begun(flight))
    if flight.kill_requested and not end.began:
        end = End.cancelled()
    if state.rc == _RC_CLAIM_FAILED and end.outcome is JobOutcome.FAILED:
        where = f"{job.local_dir} (disk full, quota, permission?)"
        why = f"its claim or output files could not be created in {where}"
        return End(JobOutcome.FAILED, _RC_CLAIM_FAILED, JobCause.SETUP, why)
    if state.rc == _RC_CLAIM_TAKEN and end.outcome is JobOutcome.FAILED:
        return End.lost("its start claim was taken by another process")
    replaced = End(
        JobOutcome.FAILED,
        state.rc or 1,
        JobCause.NOT_STARTED,
        "its wrapper ended without telling the end of the command (`exec` in a prescript or hook?)",
    )
    unexplained = end.outcome is JobOutcome.SUCCEEDED or end.cause == JobCause.EXIT_CODE
    told = replaced if unexplained else end
    try:
        won = _protocol.write_end(job.local_dir, flight.tag, told.rc, told.status, told.cause or "")
    except OSError:
        # Nothing can be written, so the wrapper could not either: its exit code is the command's.
        return end
    if won:
        return told
    # The wrapper won it: a file system that lags may have hidden that until now. If the claim is
    # empty all the same, the disk was full.
    return _read_recorded_end(flight, state) or end


def claim_lost(flight: Flight, state: BackendState, scheduler: Scheduler) -> End | None:
    """The backend has no such job and there is no end: make sure that none can come, and say so.

    Gives None if an end has been recorded after all.
    """
    job = flight.job
    rc, status = RC_LOST, JobStatus.FAILED
    if flight.kill_requested:
        end = End(JobOutcome.KILLED, 137, JobCause.REQUESTED, "killed on request")
        rc, status = end.rc, end.status
    else:
        end = End.lost(
            state.reason or f"{scheduler.name} has no such job, and it left no exit code",
            state.cause or JobCause.DISAPPEARED,
        )
    if not scheduler.uses_wrapper:
        return end
    try:
        if _protocol.revoke_start(job.local_dir, flight.tag, "driver"):
            if flight.kill_requested:
                return End.cancelled()
            return end._replace(reason=f"{end.reason}; it never started")
        if not _protocol.write_end(job.local_dir, flight.tag, rc, status, end.cause or ""):
            # Whoever won the claim has not said in it how it ended, and never will.
            return judge(flight, state, scheduler) or end._replace(reason=_UNTOLD)
    except OSError as exc:
        return end._replace(reason=f"{end.reason}; {exc}")
    return end
