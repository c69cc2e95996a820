"""What Grid Engine's programs print, as values. Pure; no text is guessed at: unknown is an error.

Job ids are text here: ``219``, or ``219.3`` for a task of an array.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Final, NamedTuple

from xqute import JobCause, SchedulerError
from xqute.scheduler import BackendState, Phase

__all__ = [
    "RC_DELETED",
    "RC_TIME_LIMIT",
    "RC_UNSEEN",
    "RC_UNSPEAKABLE",
    "Accounted",
    "QueuedTask",
    "parse_accounting",
    "parse_error_reasons",
    "parse_queue",
    "parse_submitted",
    "says_unknown_id",
    "state_of_accounted",
    "state_of_launcher",
]

#: What the launcher exits with where the command's exit code would not tell, or do harm.
RC_UNSPEAKABLE: Final = 117
RC_UNSEEN: Final = 118
RC_TIME_LIMIT: Final = 119
RC_DELETED: Final = 120

_SUBMITTED: Final = re.compile(r"^(\d+)(?:\.\d+-\d+:\d+)?$", re.MULTILINE)
_TASKS: Final = re.compile(r"(\d+)(?:-(\d+):(\d+))?")
#: What a state is made of, sge_status(5): deletion, Error, hold, running, Restarted,
#: suspended (S: by its queue, T: by a threshold), transferring, waiting, queued, z: finished.
_STATE: Final = re.compile(r"[dEhrRsSTtwqz]+")
_REASON: Final = re.compile(r"error reason\s+(\d+):\s*(.*)")
#: The date, and the ids of user and process, that an execd puts before what it says.
_STAMP: Final = re.compile(r"^\d\d/\d\d/\d{4} \d\d:\d\d:\d\d \[\d+:\d+\]: (?:error: )?")


class QueuedTask(NamedTuple):
    """One job, or one task of an array, that is in the queue."""

    name: str
    state: str
    phase: Phase

    @property
    def is_broken(self) -> bool:
        """Whether it is in error: it stays so until somebody looks after it."""
        return "E" in self.state

    @property
    def is_dying(self) -> bool:
        """Whether its deletion was asked for."""
        return "d" in self.state


def parse_submitted(text: str) -> str:
    """Read the answer of ``qsub -terse``: the id. Sites put other words before it, and after.

    Raises:
        SchedulerError: If there is no id, or more than one.
    """
    found = _SUBMITTED.findall(text)
    if len(found) != 1:
        raise SchedulerError(f"qsub gives no id: {text.strip()[:500]!r}")
    return str(found[0])


def parse_queue(text: str) -> dict[str, QueuedTask]:
    """Read ``qstat -xml``: what is in the queue, by id.

    Raises:
        SchedulerError: If it is not whole, or says something that is not known here.
    """
    try:
        root = ET.fromstring(text)  # noqa: S314  # qstat's own, and expat has no external entities
    except ET.ParseError as exc:
        raise SchedulerError(f"qstat -xml gives no XML: {exc}: {text.strip()[:500]!r}") from exc
    queued = {}
    for job in root.iter("job_list"):
        number, state = job.findtext("JB_job_number"), job.findtext("state")
        if not number or not state or not _STATE.fullmatch(state):
            raise SchedulerError(f"qstat -xml says of job {number} that it is {state!r}")
        task = QueuedTask(job.findtext("JB_name") or "", state, _phase_of(state))
        tasks = job.findtext("tasks")
        for number_of_task in _read_tasks(tasks) if tasks else ("",):
            queued[f"{number}.{number_of_task}" if tasks else number] = task
    return queued


def _phase_of(state: str) -> Phase:
    return Phase.PENDING if "q" in state else Phase.RUNNING


def _read_tasks(text: str) -> Iterator[int]:
    """Give the numbers in ``3,4,7-19:2``."""
    for part in text.split(","):
        match = _TASKS.fullmatch(part.strip())
        if match is None:
            raise SchedulerError(f"qstat -xml tells of tasks {text!r}")
        first, last, step = match.groups()
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def parse_error_reasons(text: str) -> dict[str, str]:
    """Read ``qstat -j ID,ID``: why jobs are in error, by the id of the job and of the task.

    A job that is no array is task 1 there; it is given under both names.
    """
    reasons: dict[str, str] = {}
    number = ""
    for line in text.splitlines():
        if line.startswith("job_number:"):
            number = line.split(":", 1)[1].strip()
        elif match := _REASON.match(line):
            task, reason = match.groups()
            reason = _STAMP.sub("", reason.strip())
            reasons[f"{number}.{task}"] = reason
            reasons.setdefault(number, reason)
    return reasons


class Accounted(NamedTuple):
    """How one job or task ended, as the accounting has it."""

    name: str
    #: Why it failed in Grid Engine's view, 0: it did not; and the words for it.
    failed: int
    words: str
    rc: int
    wallclock_s: float

    @property
    def was_forgotten(self) -> bool:
        """Whether Grid Engine has lost it, as it does when it is asked for too much at once."""
        return self.failed == _NOT_RECOGNIZED


def parse_accounting(text: str) -> dict[str, Accounted]:
    """Read ``qacct -j``: how jobs ended, by id; of several records of one, the last.

    Raises:
        SchedulerError: If a record lacks what each has.
    """
    accounted = {}
    for record in re.split(r"^=+\n", text, flags=re.MULTILINE):
        pairs = (line.partition(" ") for line in record.splitlines())
        fields = {key: value.strip() for key, _, value in pairs}
        if "jobnumber" not in fields:
            continue
        task = fields.get("taskid", "undefined")
        failed, _, words = fields.get("failed", "").partition(":")
        try:
            accounted[fields["jobnumber"] + ("" if task == "undefined" else f".{task}")] = (
                Accounted(
                    fields.get("jobname", ""),
                    int(failed),
                    words.strip(),
                    int(fields.get("exit_status", "").split()[0]),
                    float(fields.get("ru_wallclock", "0").rstrip("s") or 0),
                )
            )
        except (ValueError, IndexError) as exc:
            raise SchedulerError(f"qacct gives a record that cannot be read: {record!r}") from exc
    return accounted


#: `failed` codes, sge_status(5): those with which the job did not run, those with which it did.
_NOT_SET_UP: Final = frozenset({1, 3, 4, *range(6, 12), 26, 27, 28, 29, *range(31, 37), 38})
_RAN: Final = frozenset({0, *range(12, 18), 30, 100})
_SHEPHERD_DIED: Final = frozenset({18, 20})
_LIMIT: Final = 37
#: Host and qmaster have lost sight of it; it may have started or not.
_NOT_RECOGNIZED: Final = 21
#: Why the launcher has ended the job, by what it exited with.
_ENDED_BY_LAUNCHER: Final = {
    RC_TIME_LIMIT: (JobCause.TIME_LIMIT, "ended by Grid Engine at its h_rt"),
    RC_DELETED: (
        JobCause.REQUESTED,
        "ended by Grid Engine, not by this run: deleted (qdel), or over a limit other than h_rt",
    ),
    RC_UNSEEN: (
        JobCause.SETUP,
        "its node cannot see the job's folder: is the workdir on a file system that all share?",
    ),
}


def state_of_accounted(record: Accounted) -> BackendState:
    """Judge what the accounting has of a job.

    A success in it proves none: a job that was removed by force (``qdel -f``), or whose shepherd
    died while it runs on, has the same. Of such a one nobody knows how it ended.
    """
    words = f"accounting says failed {record.failed} ({record.words}), exit_status {record.rc}"
    if record.failed == _LIMIT:
        return BackendState(Phase.ENDED, record.rc or None, JobCause.TIME_LIMIT, words)
    if record.failed in _NOT_SET_UP:
        return BackendState(Phase.ENDED, None, JobCause.SETUP, words)
    if record.failed in _SHEPHERD_DIED:
        return BackendState(Phase.ENDED, None, JobCause.NODE_FAILED, words)
    if record.failed not in _RAN or record.rc in (0, RC_UNSPEAKABLE):
        return BackendState(Phase.ENDED, None, None, words)
    return state_of_launcher(record.rc) or BackendState(Phase.ENDED, record.rc, None, words)


def state_of_launcher(rc: int) -> BackendState | None:
    """Say why the launcher ended the job, or did not begin it; None: it has done neither."""
    if rc not in _ENDED_BY_LAUNCHER:
        return None
    cause, why = _ENDED_BY_LAUNCHER[rc]
    return BackendState(Phase.ENDED, None, cause, why)


def says_unknown_id(words: str) -> bool:
    """Whether qacct complains of nothing but that it does not know a job."""
    return bool(re.search(r"job id \S+ not found", words))
