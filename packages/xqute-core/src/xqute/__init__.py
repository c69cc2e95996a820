"""xqute runs commands as jobs: on this machine, and wherever a scheduler package can.

    import xqute

    for job in xqute.run(["echo 1", ["sleep", 2]], forks=2):
        print(job.index, job.outcome, job.rc)

Within an event loop, use `Xqute`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .defaults import JobCause, JobErrorStrategy, JobOutcome, JobStatus
from .errors import (
    ConfigError,
    ConfigTypeError,
    InvalidJobError,
    JobChangedError,
    SchedulerError,
    SchedulerNotFoundError,
    SubmitError,
    WorkdirError,
    WorkdirLockedError,
    XquteError,
    XquteWarning,
)
from .job import Job
from .path import MountedPath, SpecPath
from .plugin import plugin
from .scheduler import Scheduler
from .utils import logger
from .xqute import Xqute, run

if TYPE_CHECKING:
    from .resources import Resources

__all__ = [
    "ConfigError",
    "ConfigTypeError",
    "InvalidJobError",
    "Job",
    "JobCause",
    "JobChangedError",
    "JobErrorStrategy",
    "JobOutcome",
    "JobStatus",
    "MountedPath",
    "Resources",
    "Scheduler",
    "SchedulerError",
    "SchedulerNotFoundError",
    "SpecPath",
    "SubmitError",
    "WorkdirError",
    "WorkdirLockedError",
    "Xqute",
    "XquteError",
    "XquteWarning",
    "__version__",
    "logger",
    "plugin",
    "run",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("xqute-core")
    if name == "Resources":  # few need them at import
        from .resources import Resources

        return Resources
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
