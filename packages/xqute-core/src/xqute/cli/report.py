"""The account of a run: how many jobs ended how, which of them failed, and the exit code."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from shlex import quote
from typing import Any, NamedTuple

from .. import _clouds
from ..defaults import JobOutcome
from ..job import Job
from .words import count, describe_command, duration, rate, shortened

__all__ = ["EXIT_BACKEND", "EXIT_FAILED", "EXIT_USAGE", "Account", "Line", "job_record"]

EXIT_FAILED, EXIT_USAGE, EXIT_BACKEND = 1, 2, 3
#: As a shell tells of a program that died because the reader of its output went away.
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE

_N_SHOWN = 10
_N_LAST_LINES = 5
_TAIL_BYTES = 8192
_MOST_CHARS = 400

_WORDS = {
    JobOutcome.SUCCEEDED: "succeeded",
    JobOutcome.FAILED: "failed",
    JobOutcome.TIMEOUT: "timed out",
    JobOutcome.KILLED: "killed",
    JobOutcome.CANCELLED: "not begun",
    JobOutcome.SUBMIT_FAILED: "not submitted",
    JobOutcome.LOST: "lost",
}
_BACKEND = (JobOutcome.SUBMIT_FAILED, JobOutcome.LOST)
#: Not failures of the jobs: somebody wanted it so.
_ON_REQUEST = (JobOutcome.KILLED, JobOutcome.CANCELLED)


class Line(NamedTuple):
    """A line for people, with its style."""

    text: str
    style: str = ""


class Account:
    """Counts what happened to the jobs of one run.

    Attributes:
        n_retried: How many jobs were tried more than once.
        n_unfed: How many commands were known and never became jobs.
        stopped_by: The signal that stopped the run.
        is_pipe_broken: Whether the reader of standard output went away.
        error: What kept the run from going on.
    """

    def __init__(self) -> None:
        self.n_retried = 0
        self.n_adopted = 0
        self.n_unfed = 0
        self.stopped_by: signal.Signals | None = None
        self.is_pipe_broken = False
        self.error = ""
        self._outcomes: Counter[JobOutcome] = Counter()
        self._n_invalid = 0
        self._n_given_up = 0
        self._failed: list[Job] = []
        self._invalid: list[str] = []

    def add(self, job: Job) -> None:
        """Take the end of a job into account."""
        outcome = job.outcome or JobOutcome.LOST
        self._outcomes[outcome] += 1
        self.n_adopted += job.adopted
        if job.trial_count:
            self.n_retried += 1
            self._n_given_up += outcome is JobOutcome.CANCELLED
        failed = outcome is not JobOutcome.SUCCEEDED and outcome not in _ON_REQUEST
        if failed and len(self._failed) < _N_SHOWN:
            self._failed.append(job)

    def add_invalid(self, why: str) -> None:
        """Take a command into account that could not become a job."""
        self._n_invalid += 1
        if len(self._invalid) < _N_SHOWN:
            self._invalid.append(why)

    @property
    def n_ended(self) -> int:
        """How many commands have been dealt with."""
        return self._outcomes.total() + self._n_invalid

    @property
    def n_done(self) -> int:
        """How many of these had begun, or never could."""
        return self.n_ended - self._outcomes[JobOutcome.CANCELLED]

    @property
    def n_failed(self) -> int:
        """How many of these failed, those that were stopped on request left aside."""
        others = (JobOutcome.SUCCEEDED, *_ON_REQUEST)
        return self.n_ended - sum(self._outcomes[outcome] for outcome in others)

    @property
    def exit_code(self) -> int:
        """What the run exits with."""
        if self.stopped_by is not None:
            return 128 + self.stopped_by
        if self.is_pipe_broken:
            return EXIT_BROKEN_PIPE
        if self.error or any(self._outcomes[outcome] for outcome in _BACKEND):
            return EXIT_BACKEND
        if self.n_unfed or self.n_ended > self._outcomes[JobOutcome.SUCCEEDED]:
            return EXIT_FAILED
        return 0

    def record(self, workdir: str, wall_s: float) -> dict[str, Any]:
        """Give the account for programs."""
        return {
            "type": "summary",
            "workdir": os.path.abspath(workdir),
            "total": self.n_ended + self.n_unfed,
            **{outcome.value: self._outcomes[outcome] for outcome in JobOutcome},
            "invalid": self._n_invalid,
            "not_started": self.n_unfed,
            "retried": self.n_retried,
            "adopted": self.n_adopted,
            "stopped_by": None if self.stopped_by is None else self.stopped_by.name,
            "error": self.error or None,
            "wall_s": round(wall_s, 3),
            "exit_code": self.exit_code,
        }

    def describe_failures(self, workdir: str, width: int) -> Iterator[Line]:
        """Tell of the first failures: the command, how it ended, and its last words."""
        for why in self._invalid:
            yield Line(f"not a command: {why}", "red")
        for job in self._failed:
            outcome = _WORDS[job.outcome or JobOutcome.LOST]
            command = shortened(describe_command(job.cmd), max(20, width - len(str(job.index)) - 2))
            tries = f", tried {job.trial_count + 1} times" if job.trial_count else ""
            yield Line(f"#{job.index} {command}", "bold")
            reason = job.reason or f"rc {job.rc}"
            rc = "" if f"{job.rc}" in reason or job.rc < 0 else f" (rc {job.rc})"
            yield Line(f"   {outcome}: {reason}{rc}{tries}", "red")
            for text in _last_lines(f"{job.kept_dir}/job.stderr"):
                yield Line(f"   | {text}", "dim")
        n_more = self.n_failed - len(self._failed) - len(self._invalid)
        if n_more > 0:
            # It reads files, not buckets.
            how = "" if _clouds.is_far(workdir) else f": xqute status --failed {quote(workdir)}"
            yield Line(f"... and {n_more:,} more{how}", "red")

    def describe_end(self, workdir: str, wall_s: float) -> Line:
        """Tell the end of the run in one line."""
        counts = {word: self._outcomes[outcome] for outcome, word in _WORDS.items()}
        counts["not begun"] += self.n_unfed - self._n_given_up
        counts["failed and not tried again"] = self._n_given_up
        counts["not a command"] = self._n_invalid
        parts = [f"{n:,} {word}" for word, n in counts.items() if n]
        text = f"{', '.join(parts) or 'nothing'} in {duration(wall_s)}"
        if self.n_done > 1:
            text += f" ({rate(self.n_done / wall_s)})"
        if self.n_retried:
            text += f"; {count(self.n_retried, 'job was', 'jobs were')} tried again"
        if self.n_adopted:
            text += f"; {count(self.n_adopted, 'job was', 'jobs were')} started by an earlier run"
        good = self.exit_code == 0
        return Line(f"{text}; files in {workdir}", "green" if good else "bold red")


def job_record(job: Job) -> bytes:
    """Give the end of a job for programs: a line of JSON; bytes that are no text are surrogates."""
    folder = job.kept_dir
    record = {
        "type": "job",
        "index": job.index,
        "command": job.cmd,
        "outcome": job.outcome,
        "rc": job.rc,
        "cause": job.cause,
        "reason": job.reason or None,
        "attempts": job.trial_count + 1,
        "adopted": job.adopted,
        "jid": job.jid,
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "stdout_file": f"{folder}/job.stdout",
        "stderr_file": f"{folder}/job.stderr",
    }
    return json.dumps(record).encode() + b"\n"


def _last_lines(path: str) -> list[str]:
    """The end of a file; nothing where there is no such file, or none to be read."""
    try:
        if _clouds.is_far(path):
            data = (_clouds.get(path) or b"")[-_TAIL_BYTES:]
        else:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                data = file.read(_TAIL_BYTES)
    except OSError:
        return []
    return [line[:_MOST_CHARS] for line in os.fsdecode(data).splitlines()[-_N_LAST_LINES:]]
