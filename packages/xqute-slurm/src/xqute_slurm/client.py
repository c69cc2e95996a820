"""Calls of sbatch, squeue, scancel, sacct and scontrol: each with a time limit."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence

from xqute import JobCause, SchedulerError, SubmitError
from xqute.cluster import Answer, ProgramError, QueueRow, as_submit_error, run_program

from .options import overriding
from .parse import (
    QUEUE_FORMAT,
    REFUSALS,
    SACCT_FORMAT,
    join_jids,
    parse_sacct,
    parse_sbatch,
    parse_squeue,
)

__all__ = ["ArrayRefusedError", "SlurmClient"]

#: What a job that we run in knows of itself is not for the jobs that we submit.
_KEPT = frozenset(("SLURM_CONF", "SLURM_CONF_SERVER"))
#: Settings of the other programs: they would hide jobs from us, or say things in other words.
_FILTERS = ("SQUEUE_", "SCANCEL_", "SACCT_")
#: Settings of sbatch in the environment that must not go before what is ours. Others are what
#: jobs have that do not say it.
_DROPPED = frozenset(
    f"SBATCH_{name}"
    for name in (
        *("ARRAY_INX", "CLUSTERS", "ERROR", "JOB_NAME", "NO_REQUEUE", "OPEN_MODE", "OUTPUT"),
        *("REQUEUE", "SIGNAL", "WAIT"),
    )
)
#: The head of a script is within so many characters.
_HEAD_CHARS = 64 * 1024
#: How many words of job ids one command line takes, at least.
_MANY_WORDS = 2000
_ALREADY_OVER = re.compile(r"invalid job id|already complet|not pending nor running", re.IGNORECASE)


class ArrayRefusedError(SubmitError):
    """The site takes no arrays of this size.

    Attributes:
        most: How many tasks it takes; None: it does not say.
    """

    def __init__(self, message: str, most: int | None) -> None:
        super().__init__(message, transient=True)
        self.most = most


class SlurmClient:
    """Runs Slurm's programs.

    Args:
        sbatch: The program's name or path; likewise `squeue`, `scancel`, `sacct`.
        timeout_s: How long one call may take.
    """

    def __init__(
        self, *, sbatch: str, squeue: str, scancel: str, sacct: str, timeout_s: float
    ) -> None:
        self.sbatch = sbatch
        self.squeue = squeue
        self.scancel = scancel
        self.sacct = sacct
        self.timeout_s = timeout_s
        self._has_accounting = True

    async def submit(self, path: str, n_tasks: int | None) -> str:
        """Submit a script; give the id.

        Raises:
            SubmitError: If it was refused; `ArrayRefusedError` if for the size of its array.
        """
        try:
            said = overriding(_read_head(path))
            answer = await self._run([self.sbatch, "--parsable", path], without=said)
        except ProgramError as exc:
            there = not exc.is_missing
            # The controller has as many jobs as it takes (MaxJobCount), and sbatch goes on asking.
            cause = JobCause.QUOTA if "unable to accept job" in str(exc) else None
            raise SubmitError(
                str(exc), transient=there, maybe_submitted=there, cause=cause
            ) from exc
        if answer.rc == 0:
            jid = parse_sbatch(answer.out)
            if jid is None:
                words = f"sbatch gave no id: {answer.out!r}"
                raise SubmitError(words, transient=True, maybe_submitted=True)
            return jid
        if n_tasks is not None and "Invalid job array specification" in answer.words:
            raise ArrayRefusedError(answer.words, await self._read_max_array_size())
        raise as_submit_error(answer, REFUSALS)

    async def _read_max_array_size(self) -> int | None:
        folder = os.path.dirname(self.sbatch)
        try:
            answer = await self._run([os.path.join(folder, "scontrol"), "show", "config"])
        except ProgramError:
            return None
        match = re.search(r"^MaxArraySize\s*=\s*(\d+)", answer.out, re.MULTILINE)
        return int(match[1]) if match else None

    async def read_queue(self) -> dict[str, QueueRow]:
        """Give all jobs of this user, also those that ended a while ago.

        Raises:
            SchedulerError: If there is no answer.
        """
        argv = [self.squeue, "--noheader", "--array", "--states=all", "--me"]
        return parse_squeue((await self._ask([*argv, "--Format", QUEUE_FORMAT])).out)

    async def read_accounting(self, jids: Sequence[str]) -> Mapping[str, QueueRow]:
        """Give what accounting knows of these jobs, and of others of their arrays, if there is any.

        Raises:
            SchedulerError: If there is no answer.
        """
        rows: dict[str, QueueRow] = {}
        # Tasks that were cancelled while they waited share a row, which no task's own id finds.
        words = sorted({jid.partition("_")[0] for jid in jids})
        while words and self._has_accounting:
            argv = [self.sacct, "-X", "-P", "-n", f"--format={SACCT_FORMAT}", "-j"]
            some, words = words[:_MANY_WORDS], words[_MANY_WORDS:]
            try:
                answer = await self._ask([*argv, ",".join(some)])
            except ProgramError as exc:
                self._has_accounting = not exc.is_missing
                raise
            except SchedulerError as exc:
                self._has_accounting = "storage is disabled" not in str(exc)
                raise
            rows.update(parse_sacct(answer.out))
        return rows

    async def cancel(self, jids: Sequence[str], *options: str) -> None:
        """Have jobs cancelled, or signalled; those that are over are no error.

        Raises:
            SchedulerError: If something else went wrong.
        """
        words = join_jids(list(jids))
        while words:
            some, words = words[:_MANY_WORDS], words[_MANY_WORDS:]
            answer = await self._run([self.scancel, *options, *some])
            lines = [line for line in answer.err.splitlines() if not _ALREADY_OVER.search(line)]
            if answer.rc != 0 and lines:
                raise SchedulerError("; ".join(lines))

    async def _ask(self, argv: Sequence[str]) -> Answer:
        answer = await self._run(argv)
        if answer.rc != 0:
            raise SchedulerError(f"{os.path.basename(argv[0])}: {answer.words}")
        return answer

    async def _run(self, argv: Sequence[str], *, without: Collection[str] = ()) -> Answer:
        # The jobs have the environment of sbatch: there, these are for programs that they run.
        hidden = ("SLURM_",) if argv[0] == self.sbatch else ("SLURM_", *_FILTERS)
        env = {
            name: value
            for name, value in os.environ.items()
            if name in _KEPT or not (name.startswith(hidden) or name in _DROPPED or name in without)
        }
        return await run_program(argv, timeout_s=self.timeout_s, env=env)


def _read_head(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read(_HEAD_CHARS)
