"""The folders of runs: where they are made, found again, and what their files tell of the jobs."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from .. import _files, _protocol
from .._ownership import find_holder
from ..defaults import RC_LOST, RC_NOT_SUBMITTED
from ..errors import WorkdirError

__all__ = [
    "RUNS_DIR",
    "JobFiles",
    "find_run",
    "mark_latest",
    "new_run_dir",
    "owner_of",
    "read_jobs",
]

RUNS_DIR = ".xqute/runs"
_LATEST = "latest"


def new_run_dir() -> str:
    """Give a folder that no other run has: its name tells when. It is not made."""
    return f"{RUNS_DIR}/{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def mark_latest(run_dir: str) -> None:
    """Have `.xqute/runs/latest` point to a run; whoever reads it sees the old or the new.

    Raises:
        OSError: If it cannot.
    """
    parent, name = os.path.split(run_dir)
    new = f"{parent}/.{_LATEST}-{name}"
    os.symlink(name, new)
    try:
        os.replace(new, f"{parent}/{_LATEST}")
    except OSError:
        os.unlink(new)
        raise


def find_run(workdir: str | None) -> str:
    """Give the folder of a run: a path, the name of one below `.xqute/runs`, None: the latest.

    Raises:
        WorkdirError: If there is none.
    """
    if workdir is None:
        latest = f"{RUNS_DIR}/{_LATEST}"
        if not os.path.isdir(latest):
            raise WorkdirError(f"There is no run in {os.getcwd()}: no {latest}")
        return os.path.join(RUNS_DIR, os.path.basename(os.path.realpath(latest)))
    for folder in (workdir, f"{RUNS_DIR}/{workdir}"):
        if os.path.isdir(f"{folder}/.run"):
            return folder
    raise WorkdirError(f"{workdir} is not the folder of a run, nor the name of one in {RUNS_DIR}")


class JobFiles(NamedTuple):
    """What the files of a job tell.

    Attributes:
        index: Its number.
        state: One of `STATES`.
        rc: Its exit code; None if none is known.
        cause: Why it ended so, as the wrapper or the run said; often empty.
    """

    index: int  # type: ignore[assignment]  # in the place of tuple.index, which nobody needs here
    state: str
    rc: int | None = None
    cause: str = ""


#: Where a job can be, as far as files tell.
STATES = {
    "succeeded": "exit code 0",
    "failed": "another exit code, a signal, a timeout",
    "lost": "nobody knows how it ended",
    "not submitted": "the scheduler did not take it",
    "running": "it has begun and not ended",
    "vanished": "it had begun, and its process is gone without a word",
    "waiting": "not begun",
}


def read_jobs(run_dir: str) -> Iterator[JobFiles]:
    """Read the files of each job of a run, in order.

    Raises:
        OSError: If the folder of the run cannot be read.
    """
    for index in sorted(int(name) for name in os.listdir(run_dir) if name.isdecimal()):
        yield read_job(run_dir, index)


def read_job(run_dir: str, index: int) -> JobFiles:
    """Read the files of one job."""
    folder = f"{run_dir}/{index}"
    status = (_files.read_text(f"{folder}/job.status") or "").strip()
    rc = _as_int(_files.read_text(f"{folder}/job.rc"))
    if status == "6" and rc in (0, None):
        return JobFiles(index, "succeeded", rc)
    if status in ("6", "7"):
        state = "lost" if rc == RC_LOST else "failed"
        return JobFiles(index, state, rc, _end_cause(folder))
    if status == "4":
        return JobFiles(index, "vanished" if _is_gone(folder) else "running")
    return JobFiles(index, "not submitted" if rc == RC_NOT_SUBMITTED else "waiting", rc)


def owner_of(run_dir: str) -> str | None:
    """Tell who is at work in a run, in words; None: nobody, or it is unknown.

    It is only looked at: to try to take it would keep a run from starting in that moment.
    """
    try:
        holder = find_holder(f"{run_dir}/.run/owner")
    except OSError:
        return None
    return None if holder is None or holder.is_dead(has_flock=False) else str(holder)


def _as_int(text: str | None) -> int | None:
    try:
        return int(text) if text else None
    except ValueError:
        return None


def _newest_tag(folder: str, claim: str) -> str | None:
    """What the newest claim of this kind is named after."""
    made_ns = {}
    for name in os.listdir(folder):
        if name.startswith(claim):
            with suppress(FileNotFoundError):  # removed meanwhile: the job runs again
                made_ns[name] = os.stat(f"{folder}/{name}").st_mtime_ns
    return max(made_ns, key=made_ns.__getitem__).removeprefix(claim) if made_ns else None


def _end_cause(folder: str) -> str:
    tag = _newest_tag(folder, "job.end.")
    record = None if tag is None else _protocol.read_end_record(folder, tag)
    return "" if record is None else record.cause


def _is_gone(folder: str) -> bool:
    """Whether it is certain that the process of a job that has begun is no more."""
    tag = _newest_tag(folder, "job.start.")
    claim = None if tag is None else _protocol.read_start_claim(folder, tag)
    return claim is not None and _protocol.claim_is_alive(claim) is False
