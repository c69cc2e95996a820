"""Jobs that are one Batch job together, each a task of its group: names, places, script. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from xqute.defaults import JOBCMD_WRAPPER_LANG
from xqute.job import Job
from xqute.scheduler import Submission

__all__ = ["NativeId", "parse_native_id", "plan_groups", "render_dispatch"]

_MOST_TASKS: Final = 1000
#: How the id of a group's Batch job ends: the run, the first job, the attempt, how many tasks.
_GROUP_ID: Final = r".+-[0-9a-z]+-[0-9]+-[0-9]+-g([1-9][0-9]*)"
_PLACE: Final = r"0|[1-9][0-9]*"


class NativeId(NamedTuple):
    """Which Batch job a job is, or which task of one: ``<id of the Batch job>[/<place>]``.

    Attributes:
        job_id: The Batch job.
        place: The index of the task, from 0; None: the job is the Batch job alone.
        n_tasks: How many tasks the Batch job has.
    """

    job_id: str
    place: int | None = None
    n_tasks: int = 1

    def __str__(self) -> str:
        return self.job_id if self.place is None else f"{self.job_id}/{self.place}"


def plan_groups(jobs: Sequence[Job], key_of: Callable[[Job], str]) -> list[Submission]:
    """Plan jobs that ask for the same: a thousand together, and one that is alone by itself.

    Args:
        jobs: The jobs; the same run and attempt of all.
        key_of: Gives the submission key of one.
    """
    plans = []
    for start in range(0, len(jobs), _MOST_TASKS):
        members = tuple(jobs[start : start + _MOST_TASKS])
        key = key_of(members[0])
        plans.append(Submission(key if len(members) == 1 else f"{key}-g{len(members)}", members))
    return plans


def parse_native_id(jid: str, place: int | None = None) -> NativeId:
    """Give what a native id names.

    Args:
        jid: The id of a Batch job, or of a task.
        place: The task, where `jid` is that of the Batch job and that is a group's.
    """
    job_id, slash, words = jid.partition("/")
    if slash and re.fullmatch(_PLACE, words):
        place = int(words)
    group = re.fullmatch(_GROUP_ID, job_id)
    if group is None or place is None:
        return NativeId(job_id)
    return NativeId(job_id, place, int(group[1]))


def render_dispatch(workdir: str, folders: Sequence[str], tag: str, script_name: str) -> str:
    """Give the script of a group, in which each task starts the wrapper of its own job.

    It exits with 0 where the job has told its end, however it ended, and where the job had been
    revoked: a task that fails would end the whole group.

    Args:
        workdir: The folder of the run, as jobs see it.
        folders: Those of the jobs in it, in the order of the tasks; "-": there is none.
        tag: What the claims of all these attempts are named after.
        script_name: The file name of a wrapper in a job's folder.
    """
    lines = [
        f"#!{JOBCMD_WRAPPER_LANG} -p",
        f"xq_folders=({' '.join(folders)})",
        "xq_folder=${xq_folders[BATCH_TASK_INDEX]}",
        "[[ $xq_folder != - ]] || exit 0",
        f"xq_dir={shlex.quote(workdir)}/$xq_folder",
        f"[[ ! -e $xq_dir/job.start.{tag} ]] || exit 0",
        "# The wrapper sees to its own end when it gets a TERM, and this waits for it.",
        "trap : TERM INT HUP",
        f'{JOBCMD_WRAPPER_LANG} -p "$xq_dir/{script_name}"',
        "xq_rc=$?",
        f"[[ $xq_rc == 121 || -e $xq_dir/job.end.{tag} ]] && exit 0",
        'exit "$xq_rc"',
    ]
    return "\n".join([*lines, ""])
