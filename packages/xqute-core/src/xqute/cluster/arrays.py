"""Plans of many jobs as one array: the script that a task runs, and who the tasks are.

A plan has two files in ``<workdir>/.run/plans``, which only the user can read, and which are there
before the plan leaves: ``<key>.sh``, the script, and ``<key>``, the submission key of each task, a
line each. So whoever comes later can tell whose a task is. They are removed when all of its jobs
have ended for good.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress

from .. import _files, _protocol
from ..defaults import JOBCMD_WRAPPER_LANG
from ..job import Job
from ..wrapper import quote

__all__ = ["Plans", "in_columns", "render_dispatch"]

#: How many plans are remembered; the others are read again when they are needed.
_MANY = 256
_READ_BYTES = 64 * 1024 * 1024
_TASK_KEY = re.compile(r"xq-([^-]+)-(\d+)-(\d+)")


class Plans:
    """The plans of a workdir: written once, and read when they are not remembered."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, ...]] = OrderedDict()
        #: Of the plans that were written here: whoever is not known to have ended.
        self._open: dict[str, list[Job]] = {}

    def write(
        self, workdir: str, key: str, tasks: Sequence[str], jobs: Sequence[Job], script: str
    ) -> str:
        """Write a plan down; give the path of its script.

        Args:
            workdir: The folder of the run, as seen from here.
            key: The plan's.
            tasks: The submission keys of its jobs, in the order of the tasks.
            jobs: Those jobs.
            script: What each task runs.

        Raises:
            OSError: If it cannot be written.
        """
        folder = _folder(workdir)
        _files.make_dir(folder)
        _files.write_text(f"{folder}/{key}", "".join(f"{task}\n" for task in tasks))
        path = f"{folder}/{key}.sh"
        _files.write_text(path, script)
        self._remember(key, tuple(tasks))
        self._open[key] = list(jobs)
        return path

    def prune(self, workdir: str) -> None:
        """Remove the plans that were written here and whose jobs have all ended for good."""
        for key, jobs in list(self._open.items()):
            while jobs and jobs[-1].driver is None and jobs[-1].outcome is not None:
                jobs.pop()
            if not jobs:
                del self._open[key]
                self._remove(workdir, key)

    def prune_old(self, workdir: str) -> None:
        """Remove what earlier runs have left of plans all of whose tasks have an end.

        Nobody else may be at work there.

        Raises:
            OSError: If something cannot be read.
        """
        for key in _plans_in(workdir):
            text = _files.read_text(f"{_folder(workdir)}/{key}", _READ_BYTES) or ""
            if all(_has_ended(workdir, task) for task in text.splitlines()):
                self._remove(workdir, key)

    def _remove(self, workdir: str, key: str) -> None:
        self._known.pop(key, None)
        for path in (f"{_folder(workdir)}/{key}.sh", f"{_folder(workdir)}/{key}"):
            with suppress(OSError):  # it is only in nobody's way
                os.unlink(path)

    def tasks_of(self, workdir: str, key: str) -> tuple[str, ...]:
        """Give the submission keys of a plan's jobs; none if there is no such plan."""
        if key not in self._known:
            try:
                text = _files.read_text(f"{_folder(workdir)}/{key}", _READ_BYTES)
            except OSError:
                text = None
            if text is None:
                return ()
            self._remember(key, tuple(text.splitlines()))
        self._known.move_to_end(key)
        return self._known[key]

    def find(self, workdir: str, wanted: set[str]) -> dict[str, tuple[str, int]]:
        """Find, for each of these submission keys, its plan and its place there."""
        return {
            task: (name, place)
            for name in _plans_in(workdir)
            for place, task in enumerate(self.tasks_of(workdir, name))
            if task in wanted
        }

    def _remember(self, key: str, tasks: tuple[str, ...]) -> None:
        self._known[key] = tasks
        while len(self._known) > _MANY:
            self._known.popitem(last=False)


def render_dispatch(
    *,
    head: str,
    workdir: str,
    folders: Sequence[str],
    tag: str,
    wrapper_name: str,
    place: str,
    forward: str = "",
    restarted: str = "",
    shell: str = JOBCMD_WRAPPER_LANG,
) -> str:
    """Give the script that goes to the backend and starts a job's own wrapper.

    An attempt that was given up is not begun: the wrapper of a later one may have its place.

    Args:
        head: The first lines, verbatim: the shebang, and the backend's options.
        workdir: The folder of the run, as seen from where the job runs.
        folders: Those of the jobs in it, in the order of the tasks.
        tag: What the claims of all these attempts are named after.
        wrapper_name: The file name of a wrapper in a job's folder.
        place: A bash arithmetic expression that gives the task's place in that order.
        forward: The name of a signal that the backend sends to this script alone, and that all
            processes of the job are to get; empty: there is none.
        restarted: The variable that says how often the backend has started the task again; empty:
            it does not do that, and an attempt that has been started is not begun.
        shell: What runs the wrapper where it needs a process of its own.
    """
    wrapper = f'"$xq_dir"/{wrapper_name}' + (f" {tag}" if restarted else "")
    first = f"${{{restarted}:-0}} == 0 && " if restarted else ""
    lines = [
        head.rstrip("\n"),
        *_render_choice(folders, place),
        f"xq_dir={quote(workdir)}/$xq_folder",
        f"[[ {first}-e $xq_dir/job.start.{tag} ]] && exit 121",
    ]
    if not forward:
        lines.append(f". {wrapper}")  # by this shell: to start another costs as much as `true`
    else:
        lines += [
            # First of all: without it the signal would end this script, and so the job.
            f"trap 'trap : {forward}; kill -s {forward} 0' {forward}",
            "trap : TERM",
            # In braces: a plain background command would ignore SIGINT. With exec: a shell between
            # the two would be ended by that signal, and so the job.
            f"{{ exec {shell} -p {wrapper}; }} &",
            "while :; do",
            '    wait "$!"; xq_rc=$?',
            # A wait that a signal interrupted says 128 and more; so may the job.
            '    kill -0 "$!" 2>/dev/null || break',
            "done",
            'exit "$xq_rc"',
        ]
    return "\n".join([*lines, ""])


def in_columns(folders: Sequence[str]) -> tuple[str, int]:
    """Give one word that holds all of these, and the width of a column.

    Each task reads all of them: an array would take bash milliseconds.
    """
    width = max(map(len, folders))
    return "".join(folder.ljust(width) for folder in folders), width


def _render_choice(folders: Sequence[str], place: str) -> list[str]:
    """Give the lines of a script that set `xq_folder` to the one at a place of these.

    Args:
        folders: Of letters, digits and hyphens.
        place: A bash arithmetic expression that gives it, from 0.
    """
    columns, width = in_columns(folders)
    return [
        f"xq_folders='{columns}'",
        f"xq_folder=${{xq_folders:({place})*{width}:{width}}}",
        "xq_folder=${xq_folder// }",
    ]


def _plans_in(workdir: str) -> list[str]:
    """Give the keys of the plans of a workdir."""
    try:
        names = os.listdir(_folder(workdir))
    except FileNotFoundError:
        return []
    return [name for name in names if not name.endswith(".sh")]


def _has_ended(workdir: str, task: str) -> bool:
    """Whether the attempt that has this submission key has ended."""
    match = _TASK_KEY.fullmatch(task)
    if match is None:
        return False
    run_id, index, attempt = match.groups()
    end_claim = _protocol.end_claim_path(f"{workdir}/{index}", f"{run_id}-{attempt}")
    return _protocol.claim_exists(end_claim)


def _folder(workdir: str) -> str:
    return f"{workdir}/.run/plans"
