"""Calls Grid Engine's programs; each has a time limit, and its answer is a value or an error."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xqute import JobCause, SchedulerError, SubmitError
from xqute.cluster import Answer, ProgramError, Refusal, as_submit_error, run_program

from . import parse
from .parse import Accounted, QueuedTask

__all__ = ["Client", "as_refusal", "build_id_ranges"]

#: How long an answer may be that is read on the event loop.
_LONG: Final = 50_000
#: How many arguments go into one qdel.
_MANY: Final = 500
_RC_LIMIT: Final = 25
#: What qsub complains of that passes, or after which the job may be there all the same.
_REFUSALS: Final = (
    Refusal(r"only \d+ jobs are allowed", transient=True, cause=JobCause.QUOTA),
    Refusal(r"got read error|timeout|answer list", transient=True, maybe_submitted=True),
    Refusal(
        r"got select error|got send error|unable to (send message to|contact) qmaster|"
        r"can't resolve|commlib error|try again later|no space left|can't spool",
        transient=True,
    ),
)
#: What qdel says of a job with which there is nothing to do.
_NOTHING_TO_DO: Final = re.compile(
    r"does not exist|already in deletion|has (?:deleted|registered)|^$"
)


def as_refusal(answer: Answer) -> SubmitError:
    """Say what a qsub that failed means."""
    said = " ".join(f"{answer.err}\n{answer.out}".replace("Exiting.", "").split())
    said = said.removeprefix("Unable to run job: ").strip(". ")
    error = as_submit_error(Answer(answer.rc, "", said), _REFUSALS)
    if answer.rc == _RC_LIMIT and not error.transient:
        return SubmitError(str(error), transient=True, cause=JobCause.QUOTA)
    return error


def build_id_ranges(jids: Iterable[str]) -> list[str]:
    """Give arguments of qdel for these jobs and tasks: ``219.3-7``, ``220``."""
    tasks: dict[str, list[int]] = {}
    ranges = []
    for jid in jids:
        number, _, task = jid.partition(".")
        if task:
            tasks.setdefault(number, []).append(int(task))
        else:
            ranges.append(number)
    for number, found in tasks.items():
        first = last = -1
        for task_number in [*sorted(set(found)), -1]:
            if task_number == last + 1 and last > 0:
                last = task_number
                continue
            if last > 0:
                ranges.append(f"{number}.{first}" + (f"-{last}" if last > first else ""))
            first = last = task_number
    return ranges


class Client:
    """The programs of Grid Engine.

    Args:
        qsub: The name or path of each program.
        qstat: Likewise.
        qdel: Likewise.
        qacct: Likewise.
        qalter: Likewise.
    """

    def __init__(self, qsub: str, qstat: str, qdel: str, qacct: str, qalter: str) -> None:
        self.qsub = qsub
        self.qstat = qstat
        self.qdel = qdel
        self.qacct = qacct
        self.qalter = qalter

    async def submit(self, script: str, timeout_s: float) -> str:
        """Submit a script with its options in it; give the id.

        Raises:
            SubmitError: If it was refused, or that is not known.
        """
        try:
            # The user's default options may say that it is no script.
            answer = await _run([self.qsub, "-terse", "-b", "n", script], timeout_s)
        except ProgramError as exc:
            hint = "; Grid Engine's settings.sh puts it on PATH" if exc.is_missing else ""
            raise SubmitError(
                f"{exc}{hint}",
                transient=not exc.is_missing,
                maybe_submitted=not exc.is_missing,
            ) from exc
        if answer.rc != 0:
            raise as_refusal(answer)
        try:
            return parse.parse_submitted(answer.out)
        except SchedulerError as exc:
            raise SubmitError(str(exc), transient=True, maybe_submitted=True) from exc

    async def read_queue(self, timeout_s: float) -> Mapping[str, QueuedTask]:
        """Give all of the user's jobs that are in the queue, by id.

        Raises:
            SchedulerError: If there is no answer.
        """
        text = await self._ask([self.qstat, "-xml", "-u", _user()], timeout_s)
        if len(text) > _LONG:
            return await asyncio.to_thread(parse.parse_queue, text)
        return parse.parse_queue(text)

    async def read_error_reasons(self, numbers: Sequence[str], timeout_s: float) -> dict[str, str]:
        """Give why jobs are in error, by the id of the job, or of the task.

        Raises:
            SchedulerError: If there is no answer.
        """
        try:
            text = await self._ask([self.qstat, "-j", ",".join(numbers)], timeout_s)
        except SchedulerError as exc:
            if "do not exist" in str(exc):
                return {}
            raise
        return parse.parse_error_reasons(text)

    async def verify(self, number: str, timeout_s: float) -> str:
        """Give why a pending job can never run, as the site is now; empty: it can, or who knows."""
        try:
            answer = await _run([self.qalter, "-w", "v", number], timeout_s)
        except ProgramError:
            return ""
        lines = [line.strip() for line in f"{answer.err}\n{answer.out}".splitlines()]
        if "verification: no suitable queues" not in lines:
            return ""
        return "; ".join(
            dict.fromkeys(line.removeprefix("verification: ") for line in lines if line)
        )

    async def read_accounting(self, number: str, timeout_s: float) -> dict[str, Accounted] | None:
        """Give how a job, or the tasks of an array, ended; empty: it is not in the accounting.

        None: there is no accounting to be read on this host.
        """
        try:
            answer = await _run([self.qacct, "-j", number], timeout_s)
        except ProgramError:
            return None
        if answer.rc != 0:
            return {} if parse.says_unknown_id(answer.words) else None
        return parse.parse_accounting(answer.out)

    async def delete(self, jids: Iterable[str], timeout_s: float) -> None:
        """Have jobs and tasks deleted; those that are gone, or are being deleted, are no error.

        Raises:
            SchedulerError: If some could not be asked for.
        """
        ranges = build_id_ranges(jids)
        for start in range(0, len(ranges), _MANY):
            argv = [self.qdel, *ranges[start : start + _MANY]]
            try:
                answer = await _run(argv, timeout_s)
            except ProgramError as exc:
                raise SchedulerError(f"qdel: {exc}") from exc
            lines = [line.strip() for line in f"{answer.out}\n{answer.err}".splitlines()]
            bad = [line for line in lines if not _NOTHING_TO_DO.search(line)]
            if answer.rc != 0 and bad:
                raise SchedulerError(f"qdel: {'; '.join(bad)}")

    @staticmethod
    async def _ask(argv: Sequence[str], timeout_s: float) -> str:
        answer = await _run(argv, timeout_s)
        if answer.rc != 0:
            raise SchedulerError(f"{os.path.basename(argv[0])}: {answer.words}")
        return answer.out


async def _run(argv: Sequence[str], timeout_s: float) -> Answer:
    # Their words are read: they must be in the language that is expected.
    return await run_program(argv, timeout_s=timeout_s, env={**os.environ, "LC_ALL": "C"})


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return os.environ.get("USER", "*")
