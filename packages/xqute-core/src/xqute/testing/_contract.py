"""The contract: all promises in one class, and what an author says to have them tried."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ..errors import SubmitError
from ..job import Job
from ..scheduler import Scheduler, Submission
from ..utils import CommandType
from ._needs import Needs, needs_of
from ._promises.claims import ClaimPromises
from ._promises.commands import CommandPromises
from ._promises.hooks import HookPromises
from ._promises.kills import KillPromises
from ._promises.outcomes import OutcomePromises
from ._promises.polls import PollPromises
from ._promises.recovery import RecoveryPromises
from ._promises.retries import RetryPromises
from ._promises.scripts import ScriptPromises
from ._promises.submissions import SubmissionPromises
from ._promises.timeouts import TimeoutPromises
from ._rig import Rig, bash, replace

__all__ = ["SchedulerContract"]


class DoesNotApply(pytest.skip.Exception):  # type: ignore[name-defined,misc]  # made at run time
    """A skip told from where it is raised, so that pytest's summary has one line per reason."""

    __module__ = "builtins"  # the summary prints where the class is from

    @property
    def _use_item_location(self) -> bool:
        return False

    @_use_item_location.setter
    def _use_item_location(self, value: bool) -> None:
        """Keep it: pytest sets it for what fixtures raise."""


class SchedulerContract(
    CommandPromises,
    ScriptPromises,
    OutcomePromises,
    RetryPromises,
    TimeoutPromises,
    KillPromises,
    SubmissionPromises,
    ClaimPromises,
    PollPromises,
    HookPromises,
    RecoveryPromises,
):
    """What every scheduler promises, as tests. Inherit, say how yours is made, and run pytest.

        class TestPbs(SchedulerContract):
            def make_scheduler(self, workdir, **keywords):
                return PbsScheduler(workdir=workdir, **keywords)

    Each test is one promise: its name says what, its docstring why. Do not use it with a mock of
    the backend: what it finds is what only the real one does.

    Attributes:
        does_not_apply: Why promises cannot be tried, or do not hold, by `Needs` or by the name of a
            promise. Those are skipped, with that reason in pytest's summary.
        deadline_s: Seconds after which a promise is broken because nothing happens.
        many: How many jobs end at once, where many do.
    """

    does_not_apply: ClassVar[Mapping[Needs | str, str]] = {}
    deadline_s: float = 60.0
    many: int = 200

    pytestmark: ClassVar[Any] = pytest.mark.asyncio

    # --- what an author says -------------------------------------------------------------------

    def make_scheduler(self, workdir: str | os.PathLike[str], **keywords: Any) -> Scheduler:
        """Make a scheduler of the kind that is tried; keywords as for `Scheduler`."""
        raise NotImplementedError

    def tune(self, scheduler: Scheduler) -> None:
        """Set the waiting times of a scheduler as short as its backend allows."""
        scheduler.kill_grace_s = 0.3
        scheduler.kill_timeout_s = 5.0
        scheduler.recheck_interval = 0.2
        scheduler.first_recheck_s = 0.05
        scheduler.lost_grace_s = 0.2

    def make_workdir(self, tmp_path: Path, name: str) -> str | os.PathLike[str]:
        """Give a new workdir of that name; by default in pytest's temporary folder."""
        return tmp_path / name

    def command(self, *rcs: int, runs_s: float = 0.0) -> CommandType:
        """Give a command that takes `runs_s` and exits with `rcs[trial]`, or the last of them."""
        codes = " ".join(map(str, rcs))
        wait = f"sleep {runs_s}; " if runs_s else ""
        return bash(f"{wait}rcs=({codes}); exit ${{rcs[XQUTE_JOB_TRIAL]-{rcs[-1]}}}")

    def read(self, job: Job, name: str) -> bytes | None:
        """Give the content of a file of a job's folder; None: there is no such file."""
        try:
            return (job.metadir / name).read_bytes()
        except FileNotFoundError:
            return None

    def find_processes(self, word: str) -> list[int]:
        """Give the ids of the processes with this word on their command line, where jobs run."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as file:
                    if word.encode() in file.read():
                        found.append(int(pid))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended meanwhile
        return found

    def find_wrapper(self, job: Job, pid: int) -> list[int]:
        """Give the processes here that are a job's wrapper, or begin with it.

        Args:
            job: The job, which runs.
            pid: The process id in its start claim: by default that is it. Where jobs have process
                ids of their own it is somebody else here.
        """
        return [pid]

    def break_submissions(self, scheduler: Scheduler) -> str:
        """Have every submission of a scheduler fail for good; give words that its error says.

        By default the backend is not even asked. Better: a client program that is not there, a
        queue that does not exist.
        """

        async def refuses(_submission: Submission) -> Any:
            raise SubmitError("refused by the contract kit")

        replace(scheduler, "submit", refuses)
        return "refused by the contract kit"

    # --- how it is run -------------------------------------------------------------------------

    @pytest.fixture
    def rig(self, request: pytest.FixtureRequest, tmp_path: Path) -> Rig:
        """What a promise is tried with; skips those that the class says do not apply."""
        reason = self.excuse(request.function)
        if reason:
            raise DoesNotApply(f"{type(self).__name__}: {reason}")
        return Rig(self, tmp_path)

    @classmethod
    def promises(cls) -> dict[str, Callable[..., Any]]:
        """Give the promises of the contract, by name."""
        members = inspect.getmembers(SchedulerContract, inspect.isfunction)
        return {name: member for name, member in members if name.startswith("test_")}

    @classmethod
    def excuse(cls, promise: Callable[..., Any]) -> str | None:
        """Give the reason why a promise does not apply; None: it does."""
        for key in (promise.__name__, *sorted(needs_of(promise))):
            if key in cls.does_not_apply:
                return cls.does_not_apply[key]
        return None

    def __init_subclass__(cls, **keywords: Any) -> None:
        """See that no promise is replaced by accident, and that what does not apply is known.

        Raises:
            TypeError: If that is not so.
        """
        super().__init_subclass__(**keywords)
        promises = cls.promises()
        for name, promise in promises.items():
            found = inspect.getattr_static(cls, name)
            if found is not promise and not getattr(found, "xqute_overrides", False):
                raise TypeError(
                    f"{cls.__qualname__}.{name} replaces a promise of the contract: rename it, "
                    "or say that it is on purpose with @overrides_contract"
                )
        for name, member in vars(cls).items():
            if getattr(member, "xqute_overrides", False) and name not in promises:
                raise TypeError(f"{cls.__qualname__}.{name} overrides nothing: no such promise")
        for key, reason in cls.does_not_apply.items():
            if key not in promises and key not in set(Needs):
                raise TypeError(f"{cls.__qualname__}.does_not_apply: there is no promise {key!r}")
            if not reason:
                raise TypeError(f"{cls.__qualname__}.does_not_apply[{key!r}] gives no reason")
