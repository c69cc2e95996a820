"""What a promise needs so that it can be tried, and how a class says that one does not apply."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

__all__ = ["Needs", "needs", "needs_of", "overrides_contract"]

F = TypeVar("F", bound=Callable[..., Any])


class Needs(StrEnum):
    """What some promises need of a backend beside `submit_job`, `kill_job` and `job_is_running`."""

    #: Jobs are commands, run by the wrapper, with their files in the workdir.
    COMMANDS = "commands"
    #: `find_processes` sees the processes of jobs, and this user may signal them.
    PROCESSES = "processes"
    #: Another Python process can import the test class and make its scheduler.
    NEW_DRIVER = "new driver"


def needs(*what: Needs) -> Callable[[F], F]:
    """Mark a promise with what it needs."""

    def mark(promise: F) -> F:
        promise.xqute_needs = frozenset(what)  # type: ignore[attr-defined]
        return promise

    return mark


def needs_of(promise: Callable[..., Any]) -> frozenset[Needs]:
    """Give what a promise needs."""
    found: frozenset[Needs] = getattr(promise, "xqute_needs", frozenset())
    return found


def overrides_contract(test: F) -> F:
    """Mark a method that replaces a promise on purpose; without this mark, that is an error."""
    test.xqute_overrides = True  # type: ignore[attr-defined]
    return test
