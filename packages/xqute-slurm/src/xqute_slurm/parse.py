"""What Slurm's programs answer, as states of jobs; pure."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from xqute import JobCause, SchedulerError
from xqute.cluster import QueueRow, Refusal
from xqute.defaults import SIGNAL_BASE
from xqute.scheduler import BackendState, Phase
from xqute.utils import logger

__all__ = [
    "QUEUE_FORMAT",
    "REFUSALS",
    "SACCT_FORMAT",
    "join_jids",
    "parse_sacct",
    "parse_sbatch",
    "parse_squeue",
]

#: Each ends with a bar, and is not cut. The name is last: it may hold anything.
QUEUE_FORMAT = ",".join(
    f"{field}:|"
    for field in ("ArrayJobID", "ArrayTaskID", "State", "exit_code", "NodeList", "Reason", "Name")
)
SACCT_FORMAT = "JobID,State,ExitCode,NodeList,JobName"

#: What sbatch complains of, the first that fits; all else is for good.
REFUSALS = (
    # A controller that hangs says so too late: the job may be queued.
    Refusal(r"timed out|zero bytes were transmitted|connection reset|broken pipe", True, True),
    Refusal(r"unexpected message|communication (connection )?failure|endpoint", True, True),
    Refusal(r"unable to contact slurm controller|connection refused|connect failure", True),
    Refusal(r"temporarily unable|temporarily unavailable|rate limit|backup controller", True),
    # One job alone is over this limit, however few others there are.
    Refusal(r"max\w*per(job|node)|maxwall|\b(assoc|qos)(max|min|grp)(?!\w*(submit|jobs))"),
    Refusal(r"munge|authentication|credential", True),
    Refusal(
        r"submit limit|submitjob|jobs? limit|job violates|too many",
        *(True, False, JobCause.QUOTA),
    ),
)

_IS_THERE = {
    "PENDING": Phase.PENDING,
    "REQUEUED": Phase.PENDING,
    "REQUEUE_HOLD": Phase.PENDING,
    "REQUEUE_FED": Phase.PENDING,
    "RESV_DEL_HOLD": Phase.PENDING,
    "SPECIAL_EXIT": Phase.PENDING,
    "CONFIGURING": Phase.PENDING,
    "RUNNING": Phase.RUNNING,
    "COMPLETING": Phase.RUNNING,
    "RESIZING": Phase.RUNNING,
    "SIGNALING": Phase.RUNNING,
    "STAGE_OUT": Phase.RUNNING,
    "STOPPED": Phase.RUNNING,
    "SUSPENDED": Phase.RUNNING,
}


class _Ending(NamedTuple):
    cause: str | None
    words: str


_ENDED: Mapping[str, _Ending] = {
    "COMPLETED": _Ending(None, ""),
    "FAILED": _Ending(None, ""),
    "TIMEOUT": _Ending(JobCause.TIME_LIMIT, "ended by Slurm at its time limit"),
    "DEADLINE": _Ending(JobCause.TIME_LIMIT, "ended by Slurm at its deadline"),
    "OUT_OF_MEMORY": _Ending(JobCause.OUT_OF_MEMORY, "it took more memory than it had asked for"),
    "NODE_FAIL": _Ending(JobCause.NODE_FAILED, "its node failed"),
    "BOOT_FAIL": _Ending(JobCause.NODE_FAILED, "its node did not boot"),
    "PREEMPTED": _Ending(JobCause.PREEMPTED, "it had to make room for another job"),
    "CANCELLED": _Ending(JobCause.REQUESTED, "cancelled in Slurm by somebody else"),
    "REVOKED": _Ending(JobCause.REQUESTED, "it was started on another cluster"),
}
#: Reasons that do not pass by themselves, in words.
_FOR_EVER = {
    "PartitionTimeLimit": "its time limit is over that of its partition",
    "PartitionNodeLimit": "its partition has not so many nodes for one job",
    "PartitionConfig": "its partition cannot give it what it asks for",
    "PartitionInactive": "its partition is inactive",
    "PartitionDown": "its partition is down",
    "BadConstraints": "no node has what it asks for",
    "DependencyNeverSatisfied": "what it depends on has failed",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "AccountNotAllowed": "its partition does not take its account",
    "QOSNotAllowed": "its partition does not take its QOS",
    "JobHeldAdmin": "an administrator holds it",
    "JobHeldUser": "it is on hold",
    "NodeDown": "a node that it needs is down",
}
_LIMIT_FOR_EVER = re.compile(r"(Assoc|QOS)(Max|Grp)?\w*(PerJob|DurationPerJob)\w*")
_TASK = re.compile(r"(\d+)_(?:(\d+)|\[([\d,:%-]+)\])")
_told_states: set[str] = set()


def parse_sbatch(text: str) -> str | None:
    """Give the id in what `sbatch --parsable` prints; None: there is none."""
    match = re.search(r"^(\d+)(?:;\S+)?\s*$", text, re.MULTILINE)
    return match[1] if match else None


def parse_squeue(text: str) -> dict[str, QueueRow]:
    """Give the jobs in what squeue prints in `QUEUE_FORMAT`, by `id` or `array id_task`.

    Raises:
        SchedulerError: If that is something else.
    """
    rows = {}
    for line in text.splitlines():
        fields = line.split("|", 6)
        if len(fields) != len(QUEUE_FORMAT.split(",")) or not fields[0].isdigit():
            raise SchedulerError(f"squeue says something else than was asked for: {line!r}")
        submission, task, state, status, node, reason, name = fields
        place = int(task) if task.isdigit() else None
        jid = submission if place is None else f"{submission}_{place}"
        rows[jid] = QueueRow(
            submission,
            place,
            name.removesuffix("|"),
            _judge(state, _rc_of_status(status), node, reason),
            state == "PENDING" and _waits_for_ever(reason),
        )
    return rows


def parse_sacct(text: str) -> dict[str, QueueRow]:
    """Give the jobs in what `sacct -XPn` prints in `SACCT_FORMAT`, likewise."""
    rows = {}
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) < 5:  # noqa: PLR2004  # as many as were asked for
            continue
        jid, state, exit_code, node, name = fields
        state = state.split(" ")[0]  # "CANCELLED by 0"
        judged = _judge(state, _rc_of_pair(exit_code), node, "")
        for submission, place in _tasks_of(jid):
            one = submission if place is None else f"{submission}_{place}"
            rows[one] = QueueRow(submission, place, name, judged)
    return rows


def _tasks_of(jid: str) -> Iterator[tuple[str, int | None]]:
    """Give the tasks that a row is about; those that were cancelled while pending share one."""
    match = _TASK.fullmatch(jid)
    if match is None:
        if jid.isdigit():
            yield jid, None
        return
    submission, place, places = match.groups()
    if place is not None:
        yield submission, int(place)
        return
    for part in places.partition("%")[0].split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        for number in range(int(first), int(last or first) + 1, int(step or 1)):
            yield submission, number


def _judge(state: str, rc: int | None, node: str, reason: str) -> BackendState:
    phase = _IS_THERE.get(state)
    if phase is Phase.PENDING:
        return BackendState(phase, reason=_words_for(reason))
    if phase is not None:
        return BackendState(phase)
    ending = _ENDED.get(state)
    if ending is None:
        if state not in _told_states:
            _told_states.add(state)
            logger.warning("slurm: the state %s is not known here; taken for running", state)
        return BackendState(Phase.RUNNING)
    if state == "OUT_OF_MEMORY":
        rc = SIGNAL_BASE + 9  # Slurm's own code, 0:125, says nothing of the command
    elif ending.cause and not rc:
        rc = None
    elif state == "FAILED" and rc == 0:
        rc = 1
    said = ", ".join(filter(None, (state, reason if reason != "None" else "", node)))
    words = f"{ending.words} ({said})" if ending.words else said
    return BackendState(Phase.ENDED, rc, ending.cause, words if state != "COMPLETED" else "")


def _rc_of_status(text: str) -> int | None:
    """Give the exit code in a wait status."""
    if not text.isdigit():
        return None
    rc = os.waitstatus_to_exitcode(int(text) & 0xFFFF)
    return rc if rc >= 0 else SIGNAL_BASE - rc


def _rc_of_pair(text: str) -> int | None:
    """Give the exit code in `code:signal`."""
    code, _, number = text.partition(":")
    if not (code.isdigit() and number.isdigit()):
        return None
    return SIGNAL_BASE + int(number) if int(number) else int(code)


def _waits_for_ever(reason: str) -> bool:
    return reason in _FOR_EVER or bool(_LIMIT_FOR_EVER.fullmatch(reason))


def _words_for(reason: str) -> str:
    words = _FOR_EVER.get(reason)
    return f"pending: {words} ({reason})" if words else f"pending: {reason}"


def join_jids(jids: list[str]) -> list[str]:
    """Give the shortest words that name these jobs to Slurm's programs: `7_[0-4,9]`."""
    words = []
    places: dict[str, list[int]] = {}
    for jid in jids:
        submission, _, place = jid.partition("_")
        if place:
            places.setdefault(submission, []).append(int(place))
        else:
            words.append(jid)
    for submission, numbers in places.items():
        words.append(f"{submission}_[{','.join(_ranges(sorted(set(numbers))))}]")
    return words


def _ranges(numbers: list[int]) -> Iterator[str]:
    first = last = numbers[0]
    for number in [*numbers[1:], -1]:
        if number == last + 1:
            last = number
            continue
        yield str(first) if first == last else f"{first}-{last}"
        first = last = number
