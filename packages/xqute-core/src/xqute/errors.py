"""The tree of errors: each is an `XquteError`, and the standard error that a caller expects."""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "ConfigTypeError",
    "InvalidJobError",
    "JobChangedError",
    "SchedulerError",
    "SchedulerNotFoundError",
    "SubmitError",
    "WorkdirError",
    "WorkdirLockedError",
    "XquteError",
    "XquteWarning",
]


class XquteError(Exception):
    """Anything that xqute itself raises."""


class XquteWarning(UserWarning):
    """Something was understood, but is probably not what was meant."""


class ConfigError(XquteError, ValueError):
    """A keyword or an option that makes no sense; nothing was started."""


class ConfigTypeError(ConfigError, TypeError):
    """An option of a type that it cannot be."""


class InvalidJobError(XquteError, ValueError):
    """A command, an environment or an index that no job can have. Nothing was queued."""


class JobChangedError(InvalidJobError):
    """A job that an earlier run has started is still there, and is not what is fed now."""


class SchedulerError(XquteError):
    """A backend, or what was asked of it, is at fault."""


class SchedulerNotFoundError(SchedulerError, LookupError):
    """No scheduler of that name is installed, or what was found is none."""


class SubmitError(SchedulerError, RuntimeError):
    """A submission was refused.

    Attributes:
        transient: True if the same submission may well be accepted later (quota, controller down):
            it is tried again with growing delay, and not counted as a retry of the job.
        maybe_submitted: True if the backend may have accepted the job in spite of the error.
        cause: A `JobCause`, where one is known.
    """

    def __init__(
        self,
        message: str,
        *,
        transient: bool = False,
        maybe_submitted: bool = False,
        cause: str | None = None,
    ) -> None:
        super().__init__(message)
        self.transient = transient
        self.maybe_submitted = maybe_submitted
        self.cause = cause


class WorkdirError(XquteError, OSError):
    """The workdir cannot be used: it is a file, or cannot be written."""


class WorkdirLockedError(WorkdirError):
    """Another run owns the workdir; the message names it."""
