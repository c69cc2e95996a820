"""Calls of client programs: each with a time limit, none waiting for another."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from ..errors import SchedulerError, SubmitError

__all__ = [
    "Answer",
    "ProgramError",
    "Refusal",
    "as_submit_error",
    "client_program",
    "run_program",
]

#: How long a program that was killed may take to be gone.
_REAP_S = 2.0


def client_program(name: str) -> Any:
    """Give a property of a scheduler: the name or path of a program that its `client` runs."""

    def read(scheduler: Any) -> str:
        path: str = getattr(scheduler.client, name)
        return path

    def assign(scheduler: Any, path: str) -> None:
        setattr(scheduler.client, name, path)

    return property(read, assign, doc=f"The name or path of `{name}`. May be assigned.")


class Answer(NamedTuple):
    """What a program said.

    Attributes:
        rc: Its exit code; -n for a death by signal n.
        out: Its standard output; bytes that are no text are surrogates.
        err: Its standard error, likewise.
    """

    rc: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """What it complains of, in one line."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return "; ".join(line.strip() for line in lines) or f"exit code {self.rc}"


class ProgramError(SchedulerError):
    """A client program could not be run, or did not answer in time.

    Attributes:
        is_missing: True: there is no such program. False: it was started, and what it asked for may
            have been done.
    """

    def __init__(self, message: str, *, is_missing: bool = False) -> None:
        super().__init__(message)
        self.is_missing = is_missing


class Refusal(NamedTuple):
    """What a complaint of a submitting program means.

    Attributes:
        pattern: A regular expression that is searched in its words, whatever their case.
        transient: Whether the same may be accepted later.
        maybe_submitted: Whether it may have been accepted in spite of the complaint.
        cause: A `JobCause`, where one is known.
    """

    pattern: str
    transient: bool = False
    maybe_submitted: bool = False
    cause: str | None = None


async def run_program(
    argv: Sequence[str], *, timeout_s: float, env: Mapping[str, str] | None = None
) -> Answer:
    """Run a program to its end, without standard input, and give what it said.

    It has a session of its own: a Ctrl-C is not for it. If the caller is cancelled, or time is up,
    it is killed with its children.

    Raises:
        ProgramError: If there is no such program, or it takes longer than `timeout_s`.
    """
    name = os.path.basename(argv[0])
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except OSError as exc:
        missing = isinstance(exc, FileNotFoundError | PermissionError | NotADirectoryError)
        words = f"{argv[0]} cannot be run: {exc.strerror or exc}"
        raise ProgramError(words, is_missing=missing) from exc
    talk = asyncio.create_task(process.communicate())
    is_late = True
    try:
        await asyncio.wait([talk], timeout=timeout_s)
        is_late = not talk.done()
    finally:
        if is_late:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.wait([talk], timeout=_REAP_S)
            talk.cancel()  # if somebody still holds its outputs
    out, err = ("", "") if talk.cancelling() else map(os.fsdecode, talk.result())
    answer = Answer(process.returncode or 0, out, err)
    if is_late:
        said = f" ({answer.words})" if out or err else ""
        raise ProgramError(f"{name} did not answer within {timeout_s:g} s{said}")
    return answer


def as_submit_error(answer: Answer, refusals: Sequence[Refusal]) -> SubmitError:
    """Give the error that a refused submission is, by the first refusal in the table that fits.

    What no line of the table knows is taken for permanent.
    """
    words = answer.words
    for refusal in refusals:
        if re.search(refusal.pattern, words, re.IGNORECASE):
            _, transient, maybe, cause = refusal
            return SubmitError(words, transient=transient, maybe_submitted=maybe, cause=cause)
    return SubmitError(words)
