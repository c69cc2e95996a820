"""The scheduler for Grid Engine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from xqute import Job, JobCause, SchedulerError, SubmitError
from xqute.cluster import ClusterScheduler, QueueRow, client_program
from xqute.scheduler import BackendState, Phase, Submission

from . import options, parse
from .client import Client
from .launcher import NOTE_PREFIX, render_launcher

__all__ = ["SgeScheduler"]

_VISIBLE_WITHIN_S: Final = 30.0
_VERIFY_AFTER_S: Final = 10.0
#: Together with a last qacct and a qstat, it is less than the engine waits for an answer.
_ACCOUNTING_BUDGET_S: Final = 15.0
_TOO_MANY_TASKS: Final = re.compile(r"more than (\d+) tasks")


class SgeScheduler(ClusterScheduler):
    """Runs jobs on Grid Engine (SGE, Son of Grid Engine and their kin).

    Native options are keywords: ``q="short.q"`` is ``#$ -q short.q``; a list repeats the option;
    True is the option alone. ``r="n"`` and ``notify=True`` are the defaults.

    Args:
        qsub: The name or path of the program; likewise `qstat`, `qdel`, `qacct`, `qalter`.
        memory_resource: The site's name for the memory of a slot.
        gpu_resource: The site's name for graphics processors.

    Further arguments are those of `ClusterScheduler`; `cwd` is where the driver is unless it says
    else, and must be there on the hosts, too.

    Raises:
        ConfigError: If an option is reserved, or none.
    """

    name = "sge"
    task_place: ClassVar[str] = "SGE_TASK_ID-1"
    native_id_variable: ClassVar[str] = "XQUTE_NATIVE_ID"
    restarted: ClassVar[str] = "RESTARTED"
    qsub = client_program("qsub")
    qstat = client_program("qstat")
    qdel = client_program("qdel")
    qacct = client_program("qacct")

    def __init__(
        self,
        *args: Any,
        qsub: str = "qsub",
        qstat: str = "qstat",
        qdel: str = "qdel",
        qacct: str = "qacct",
        qalter: str = "qalter",
        memory_resource: str = "h_vmem",
        gpu_resource: str | None = None,
        **config: Any,
    ) -> None:
        super().__init__(*args, **config)
        # Grid Engine looks for jobs to start every 15 s, where nobody has set it otherwise.
        self.linger_s = 8.0
        # And it writes its accounting every 15 s.
        self.accounting_lag_s = 20.0
        for name in self.config:
            options.check_option_name(name)
        if self.cwd is None:
            self.cwd = os.getcwd()
        self.client = Client(qsub, qstat, qdel, qacct, qalter)
        self.memory_resource = memory_resource
        self.gpu_resource = gpu_resource
        #: Seconds that a file system may take to show a job's folder on the host where it starts.
        self.visible_within_s = _VISIBLE_WITHIN_S
        #: Seconds that a job is pending until it is asked whether it can ever run.
        self.verify_after_s = _VERIFY_AFTER_S
        #: Seconds after which, in one look at the accounting, no further submission is asked for.
        self.accounting_budget_s = _ACCOUNTING_BUDGET_S
        #: Those that were asked for there, the one that it is longest ago of first.
        self._asked: dict[str, None] = {}
        #: Submissions of this scheduler's that are pending: since when, and why for ever.
        self._pending: dict[str, float] = {}
        self._verified: dict[str, str] = {}
        self._watched: set[str] = set()
        #: What a working accounting does not know, and what Grid Engine has lost, as it says there.
        self._unaccounted: set[str] = set()
        self._forgotten: set[str] = set()

    # --- scripts -------------------------------------------------------------------------------

    def build_options(self, job: Job) -> tuple[str, ...]:
        """Give the lines ``#$ -key value`` of a job, but for its name and tasks."""
        native = {"r": "n", "notify": True, **self.config, **(job.scheduler_opts or {})}
        native.setdefault("o", "/dev/null")
        if "e" not in native:
            native.setdefault("j", "y")
        resources = self.resources_of(job)
        found = options.build_resource_options(
            resources,
            native,
            memory_resource=self.memory_resource,
            gpu_resource=self.gpu_resource,
            warn_before_s=self.signal_before_end_s or 0,
        )
        return tuple(options.build_option_lines(found))

    def build_head(self, options: Sequence[str], name: str, n_tasks: int | None) -> str:
        """Give the first lines of a script: the shebang, and the options."""
        lines = ["#!/bin/bash", "#$ -S /bin/bash", "#$ -wd /", f"#$ -N {name}", *options]
        if n_tasks is not None:
            lines.append(f"#$ -t 1-{n_tasks}")
            if self.max_running is not None:
                lines.append(f"#$ -tc {self.max_running}")
        return "\n".join(lines)

    def may_restart(self, job: Job) -> bool:
        """Whether the job has the option ``r``."""
        own = (job.scheduler_opts or {}).get("r")
        return (self.config.get("r") if own is None else own) in (True, "y", "yes")

    @property
    def jobcmd_wrapper_init(self) -> str:
        """Bash code that tells the wrapper whether Grid Engine has started the job again."""
        return f"xq_restart=${{{self.restarted}:-0}}"

    def _write_script(self, submission: Submission, name: str, jobs: Sequence[Job]) -> str:
        """Write the launcher. Others can read what Grid Engine spools: it is given no wrapper."""
        first = jobs[0]
        lines = self.build_options(first)
        n_tasks = len(submission.jobs)
        ready = set(jobs)
        script = render_launcher(
            head=self.build_head(lines, name, n_tasks if n_tasks > 1 else None),
            workdir=str(first.workdir.mounted),
            folders=[str(job.index) if job in ready else "-" for job in submission.jobs],
            tag=self.claim_tag(first),
            wrapper=self.wrapper_name,
            grace_s=self.kill_grace_s,
            limit_s=options.limit_s(lines),
            wait_s=self.visible_within_s,
            restarts=self.may_restart(first),
        )
        tasks = [self.submission_key(job) for job in submission.jobs]
        return self._plans.write(self.local_workdir, submission.key, tasks, submission.jobs, script)

    # --- submission ----------------------------------------------------------------------------

    async def submit_script(self, path: str, name: str, n_tasks: int | None) -> str:
        """Submit a script; give the id."""
        try:
            return await self.client.submit(path, self.client_timeout_s)
        except SubmitError as exc:
            if too_many := _TOO_MANY_TASKS.search(str(exc)):
                self.array_size = min(self.array_size, int(too_many[1]))
                raise SubmitError(str(exc), transient=n_tasks is not None) from exc
            raise

    def build_jid(self, submission_id: str, place: int) -> str:
        """Give the id of a task, ``219.3``."""
        return f"{submission_id}.{place + 1}"

    # --- asking --------------------------------------------------------------------------------

    async def read_queue(self) -> Mapping[str, QueueRow]:
        """Give the user's jobs from one qstat; and, now and then, why one can never run."""
        queued = await self.client.read_queue(self.client_timeout_s)
        rows = {}
        pending = set()
        for jid, task in queued.items():
            number = jid.partition(".")[0]
            if task.state == "qw" and number in self._watched:
                pending.add(number)
            never = self._verified.get(number, "") if task.phase is Phase.PENDING else ""
            reason = never or (task.state if task.is_broken else "")
            rows[jid] = QueueRow(
                number,
                _place_in(jid),
                task.name,
                BackendState(task.phase, None, None, reason),
                bool(never),
            )
        await self._verify_one(pending)
        return rows

    async def _verify_one(self, pending: set[str]) -> None:
        """Ask of one submission that has been pending for long whether it can ever run."""
        now_s = time.monotonic()
        self._pending = {number: self._pending.get(number, now_s) for number in pending}
        self._verified = {n: why for n, why in self._verified.items() if n in pending}
        for number, since_s in self._pending.items():
            if number not in self._verified and now_s - since_s >= self.verify_after_s:
                self._verified[number] = await self.client.verify(number, self.client_timeout_s)
                return

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Tell about jobs; see `ClusterScheduler`. A job in error has ended: it is told why."""
        states: dict[Job, BackendState] = {}
        asked = []
        for job in jobs:
            if job.jid is not None:
                self._watched.add(str(job.jid).partition(".")[0])
            told = self.read_end(job) if job.jid is not None else None
            if told is not None and told.rc != 0:
                # Nothing knows better: the launcher, if it has ended the job, and else the wrapper.
                states[job] = self._read_note(job) or BackendState(Phase.ENDED, told.rc)
            else:
                asked.append(job)
        states.update(await super().poll_jobs(asked))
        for job, state in states.items():
            if state.phase is Phase.ENDED and state.rc and self.may_restart(job):
                states[job] = self._read_note(job) or state
        broken = [
            job
            for job, state in states.items()
            if state.phase is Phase.PENDING and state.reason.startswith("E")
        ]
        if broken:
            states.update(await self._end_broken(broken))
        return states

    def _read_note(self, job: Job) -> BackendState | None:
        """Give what the launcher has said of the end of a job."""
        note = (job.read_file(f"{NOTE_PREFIX}{self.claim_tag(job)}") or "").strip()
        return parse.state_of_launcher(int(note)) if note.isdecimal() else None

    async def _end_broken(self, jobs: Sequence[Job]) -> dict[Job, BackendState]:
        """Read why jobs are in error, then remove them: nobody else would."""
        jids = [str(job.jid) for job in jobs]
        numbers = sorted({jid.partition(".")[0] for jid in jids})
        reasons = await self.client.read_error_reasons(numbers, self.client_timeout_s)
        await self.client.delete(jids, self.client_timeout_s)
        states = {}
        for job, jid in zip(jobs, jids, strict=True):
            why = reasons.get(jid) or "it does not say why"
            reason = f"Grid Engine cannot start it (Eqw): {why}"
            states[job] = BackendState(Phase.ENDED, None, JobCause.SETUP, reason)
        return states

    async def read_accounting(self, jids: Sequence[str]) -> Mapping[str, QueueRow | None]:
        """Ask qacct, once for all tasks of an array, and for so many arrays as there is time.

        Raises:
            SchedulerError: If there is no accounting to be read here.
        """
        rows: dict[str, QueueRow | None] = dict.fromkeys(jids)
        numbers = dict.fromkeys(jid.partition(".")[0] for jid in jids)
        asked = [number for number in self._asked if number in numbers]
        turns = [*(number for number in numbers if number not in self._asked), *asked]
        self._asked = dict.fromkeys(asked)
        enough_s = time.monotonic() + self.accounting_budget_s
        for number in turns:
            if time.monotonic() > enough_s:
                break
            found = await self.client.read_accounting(number, self.client_timeout_s)
            self._asked.pop(number, None)
            self._asked[number] = None
            if found is None:
                raise SchedulerError("qacct finds no accounting")
            for jid in jids:
                if jid in found:
                    state = parse.state_of_accounted(found[jid])
                    if found[jid].was_forgotten:
                        self._forgotten.add(jid)
                    rows[jid] = QueueRow(number, _place_in(jid), found[jid].name, state)
                elif jid.partition(".")[0] == number:
                    del rows[jid]
                    self._unaccounted.add(jid)
        return rows

    def was_removed(self, jid: str, rows: Mapping[str, QueueRow]) -> bool:
        """Whether neither queue nor accounting has a job: it was deleted while it was pending."""
        return jid in self._unaccounted

    def explain_no_start(
        self, job: Job, state: BackendState, rows: Mapping[str, QueueRow]
    ) -> BackendState:
        """Say why a job is over that never began: Grid Engine may have lost it, or see the base."""
        if str(job.jid) in self._forgotten:
            why = f"Grid Engine has lost it before it started: {state.reason}"
            return BackendState(Phase.ENDED, None, JobCause.NODE_FAILED, why)
        return super().explain_no_start(job, state, rows)

    # --- killing -------------------------------------------------------------------------------

    async def end_jobs(self, waiting: Sequence[str], running: Sequence[str], force: bool) -> None:
        """Delete jobs. The launcher of a running one makes TERM, grace and KILL of it."""
        await self.client.delete([*waiting, *running], self.client_timeout_s)


def _place_in(jid: str) -> int | None:
    """Give the place of a task in its array, from 0; None: it is in none."""
    task = jid.partition(".")[2]
    return int(task) - 1 if task else None
