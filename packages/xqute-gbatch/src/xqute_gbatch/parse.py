"""What Batch says, as states of jobs; and the filters of what it is asked. Pure.

Exit codes of Batch's own: https://cloud.google.com/batch/docs/troubleshooting#reserved-exit-codes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xqute.defaults import JobCause
from xqute.errors import SchedulerError
from xqute.scheduler import BackendState, Phase

__all__ = [
    "ACTIVE_STATES",
    "ACTIVE_TASK_STATES",
    "KEY_LABEL",
    "RUN_LABEL",
    "build_filter",
    "parse_state",
    "parse_task_state",
    "run_of_key",
]

#: The label under which all jobs of a run are found.
RUN_LABEL: Final = "xqute_run"
KEY_LABEL: Final = "xqute_key"

#: Where a state of Batch leaves a job; CANCELLED and FAILED need a closer look.
_PHASES: Final[Mapping[str, Phase]] = {
    "STATE_UNSPECIFIED": Phase.PENDING,
    "QUEUED": Phase.PENDING,
    "SCHEDULED": Phase.PENDING,
    "RUNNING": Phase.RUNNING,
    "CANCELLATION_IN_PROGRESS": Phase.RUNNING,
    "DELETION_IN_PROGRESS": Phase.RUNNING,
    "SUCCEEDED": Phase.ENDED,
    "FAILED": Phase.ENDED,
    "CANCELLED": Phase.GONE,
}
ACTIVE_STATES: Final = tuple(
    state
    for state, phase in _PHASES.items()
    if phase in (Phase.PENDING, Phase.RUNNING) and state != "STATE_UNSPECIFIED"
)

#: Where a state of a task leaves its job. One that succeeded is over, and could tell how it ended.
_TASK_PHASES: Final[Mapping[str, Phase]] = {
    "STATE_UNSPECIFIED": Phase.PENDING,
    "PENDING": Phase.PENDING,
    "ASSIGNED": Phase.PENDING,
    "RUNNING": Phase.RUNNING,
    "SUCCEEDED": Phase.GONE,
    "FAILED": Phase.ENDED,
    "UNEXECUTED": Phase.ENDED,
}
ACTIVE_TASK_STATES: Final = tuple(
    state for state, phase in _TASK_PHASES.items() if phase in (Phase.PENDING, Phase.RUNNING)
)

_CAUSES: Final[Mapping[int, tuple[JobCause, str]]] = {
    50001: (JobCause.PREEMPTED, "its Spot VM was preempted"),
    50002: (JobCause.NODE_FAILED, "its VM was not heard of any more"),
    50003: (JobCause.NODE_FAILED, "its VM was rebooted"),
    50004: (JobCause.NODE_FAILED, "its VM did not answer any more"),
    50005: (JobCause.TIME_LIMIT, "it ran longer than its maxRunDuration"),
    50006: (JobCause.NODE_FAILED, "its VM was made anew"),
}
_EXIT_CODE: Final = r"exit code (\d+)"
_QUOTA: Final = r"(?i)quota|RESOURCE_POOL_EXHAUSTED|stockout"


def parse_state(state: str, events: Iterable[str]) -> BackendState:
    """Give what a job's state, and the descriptions of its events, mean.

    Raises:
        SchedulerError: If there is no such state.
    """
    phase = _PHASES.get(state)
    if phase is None:
        raise SchedulerError(f"Batch says that a job is {state!r}, which is no state we know")
    told = [text for text in events if text]
    last = told[-1] if told else ""
    if state == "SUCCEEDED":
        return BackendState(phase, 0)
    if state != "FAILED":
        return BackendState(phase, reason=last)
    codes = re.findall(_EXIT_CODE, " ".join(told))
    if not codes:
        cause = JobCause.QUOTA if re.search(_QUOTA, " ".join(told)) else JobCause.SETUP
        return BackendState(phase, None, cause, last or "Batch says that it failed, and not why")
    rc = int(codes[-1])
    if rc in _CAUSES:
        cause, words = _CAUSES[rc]
        return BackendState(phase, None, cause, f"{words} (Batch's exit code {rc})")
    return BackendState(phase, rc, reason=last)


def parse_task_state(
    state: str, events: Iterable[str], job_state: str, job_events: Sequence[str]
) -> BackendState:
    """Give what the states and events of a task and of its Batch job mean for a job.

    Raises:
        SchedulerError: If there is no such state.
    """
    phase = _TASK_PHASES.get(state)
    if phase is None:
        raise SchedulerError(f"Batch says that a task is {state!r}, which is no state we know")
    if state == "FAILED":
        return parse_state("FAILED", events)
    if phase is Phase.GONE:
        return BackendState(phase)
    if job_state in ACTIVE_STATES:
        # Why a task was not executed is not told before the Batch job is over.
        whole = parse_state(job_state, job_events)
        return whole._replace(phase=Phase.PENDING if phase is Phase.ENDED else phase)
    # The Batch job is over, and the task never was. Its exit codes are those of other tasks.
    whole = parse_state(job_state, [text for text in job_events if not _tells_exit_code(text)])
    if whole.phase is Phase.GONE or whole.cause == JobCause.QUOTA:
        return whole
    if any(map(_tells_exit_code, job_events)):
        why = "its group ended before it ran, since another task of it failed"
        return BackendState(Phase.ENDED, None, JobCause.NODE_FAILED, why)
    return whole._replace(phase=Phase.ENDED, rc=None, cause=whole.cause or JobCause.SETUP)


def _tells_exit_code(text: str) -> bool:
    return re.search(_EXIT_CODE, text) is not None


def run_of_key(key: str) -> str:
    """Give the run of a submission key, ``xq-<run>-<index>-<attempt>``."""
    return key.split("-")[1]


def build_filter(runs: Iterable[str], *, active: bool) -> str:
    """Give the filter for the jobs of these runs; `active`: only those that have not ended."""
    mine = " OR ".join(f'labels.{RUN_LABEL}="{run}"' for run in sorted(set(runs)))
    if not active:
        return f"({mine})"
    states = " OR ".join(f'status.state="{state}"' for state in ACTIVE_STATES)
    return f"({mine}) AND ({states})"
