"""Constants, and the enums that say where a job is and how it ended.

Importing this module has no side effects. Units are in the names.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import overload

__all__ = [
    "DEFAULT_ERROR_STRATEGY",
    "DEFAULT_FIRST_RECHECK_S",
    "DEFAULT_JOB_CMD_WRAPPER_SHELL",
    "DEFAULT_KILL_GRACE_S",
    "DEFAULT_KILL_TIMEOUT_S",
    "DEFAULT_LOST_GRACE_S",
    "DEFAULT_NUM_RETRIES",
    "DEFAULT_RECHECK_INTERVAL_S",
    "DEFAULT_SCHEDULER_FORKS",
    "DEFAULT_SUBMISSION_BATCH",
    "DEFAULT_WORKDIR",
    "JOBCMD_WRAPPER_LANG",
    "LOGGER_NAME",
    "MAX_BACKEND_RESTARTS",
    "RC_LOST",
    "RC_NOT_SUBMITTED",
    "RC_UNKNOWN",
    "SIGNAL_BASE",
    "JobCause",
    "JobErrorStrategy",
    "JobOutcome",
    "JobStatus",
]


class JobStatus(IntEnum):
    """Where a job is. The numbers are relied on by other programs, and stand in ``job.status``."""

    INIT = 0
    RETRYING = 1
    QUEUED = 2
    SUBMITTED = 3
    RUNNING = 4
    KILLING = 5
    FINISHED = 6
    FAILED = 7

    @overload
    @classmethod
    def get_name(cls, status: int, /) -> str: ...
    @overload
    @classmethod
    def get_name(cls, *statuses: int) -> str | tuple[str, ...]: ...
    @classmethod
    def get_name(cls, *statuses: int) -> str | tuple[str, ...]:
        """Give the name of one status, or a tuple of names for several.

        Raises:
            ValueError: If a number is no status.
        """
        names = tuple(cls(status).name for status in statuses)
        return names[0] if len(names) == 1 else names


class JobErrorStrategy(StrEnum):
    """What a run does when a job fails."""

    IGNORE = "ignore"
    RETRY = "retry"
    HALT = "halt"


class JobOutcome(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    #: Its own exit code was not 0, or a plugin judged so.
    FAILED = "failed"
    TIMEOUT = "timeout"
    #: On request, after it started.
    KILLED = "killed"
    #: On request, before it started.
    CANCELLED = "cancelled"
    SUBMIT_FAILED = "submit_failed"
    #: Its fate is unknown, and only then.
    LOST = "lost"


class JobCause(StrEnum):
    """Why a job ended as it did, where that is known and is not plain from its exit code."""

    EXIT_CODE = "EXIT_CODE"
    SIGNAL = "SIGNAL"
    TIMEOUT = "TIMEOUT"
    SETUP = "SETUP"
    NOT_STARTED = "NOT_STARTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    PREEMPTED = "PREEMPTED"
    NODE_FAILED = "NODE_FAILED"
    TIME_LIMIT = "TIME_LIMIT"
    QUOTA = "QUOTA"
    HOST_REBOOTED = "HOST_REBOOTED"
    REQUESTED = "REQUESTED"
    SUBMISSION = "SUBMISSION"
    DISAPPEARED = "DISAPPEARED"
    DISK = "DISK"
    PLUGIN = "PLUGIN"


DEFAULT_WORKDIR = "./.xqute"
DEFAULT_ERROR_STRATEGY = JobErrorStrategy.IGNORE
DEFAULT_NUM_RETRIES = 3
DEFAULT_SCHEDULER_FORKS = 1
DEFAULT_SUBMISSION_BATCH = 8
#: Between two bulk queries for silent jobs.
DEFAULT_RECHECK_INTERVAL_S = 10.0
#: From a submission to the first such query.
DEFAULT_FIRST_RECHECK_S = 1.0
#: From the backend's word that a job is gone to the verdict that it is lost.
DEFAULT_LOST_GRACE_S = 2.0
#: Between TERM and KILL.
DEFAULT_KILL_GRACE_S = 10.0
#: From TERM until a kill that was not confirmed is called so.
DEFAULT_KILL_TIMEOUT_S = 60.0
#: How often a preempted job, or one whose node failed, is submitted again of its own.
MAX_BACKEND_RESTARTS = 5

#: What `Job.rc` is when there is no exit code.
RC_UNKNOWN = -1
RC_NOT_SUBMITTED = -2
RC_LOST = -3
#: A death by signal n is told as this plus n.
SIGNAL_BASE = 128

JOBCMD_WRAPPER_LANG = "/bin/bash"
DEFAULT_JOB_CMD_WRAPPER_SHELL = JOBCMD_WRAPPER_LANG

LOGGER_NAME = "XQUTE"
