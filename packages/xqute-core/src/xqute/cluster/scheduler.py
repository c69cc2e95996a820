"""The scheduler for a batch cluster: plans of arrays, one look at the queue for all jobs, kills."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from .. import _protocol
from .._checks import check_count, check_seconds
from ..defaults import JOBCMD_WRAPPER_LANG, JobCause
from ..errors import ConfigError, SchedulerError, SubmitError
from ..job import Job
from ..scheduler import BackendState, Phase, Scheduler, Submission
from ..utils import logger
from .arrays import Plans, render_dispatch
from .asking import Asking
from .queue import Queue, QueueRow, Snapshot, has_ended
from .rounds import Rounds

__all__ = ["ClusterScheduler", "QueueRow"]

#: How long rendering wrappers may keep the event loop from others.
_TURN_S = 0.005
#: What ends the id of an array as a whole.
_ARRAY_MARK = "[]"
#: A wrapper that is larger stays in its job's folder: a backend may refuse it (Slurm at 4 MiB).
_MOST_SUBMITTED_BYTES = 1024 * 1024
#: How old may be what is told of a single job.
_SAME_LOOK_S = 1.0
_MAX_PREFIX = 40
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]")


class ClusterScheduler(Scheduler):
    """What is the same for all batch clusters; see the methods that raise NotImplementedError.

    Args:
        max_running: How many tasks of one array may run at once; None: as many as the site allows.
        signal_before_end_s: Seconds before the end of its walltime at which a job is warned by
            SIGUSR1, sent to all its processes; None: it is not.
        client_timeout_s: How long one call of a client program may take.
        array_size: How many jobs may go into one array; 1: no arrays.

    Further arguments are those of `Scheduler`.
    """

    explains_failures = True
    #: A bash arithmetic expression: the place of a task in its array, from 0.
    task_place: ClassVar[str] = ""
    #: The environment variable that says whether the backend has started the job again: not 0.
    restarted: ClassVar[str] = ""

    def __init__(
        self,
        *args: Any,
        max_running: int | None = None,
        signal_before_end_s: float | None = None,
        client_timeout_s: float = 30.0,
        array_size: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.linger_s = 3.0
        #: Seconds after which accounting, where there is any, must have heard of an end.
        self.accounting_lag_s = 15.0
        if max_running is not None:
            check_count("max_running", max_running, 1)
        if signal_before_end_s is not None:
            check_seconds("signal_before_end_s", signal_before_end_s, positive=True)
        self.max_running = max_running
        self.signal_before_end_s = signal_before_end_s
        self.client_timeout_s = check_seconds("client_timeout_s", client_timeout_s, positive=True)
        self.array_size = check_count("array_size", array_size, 1)
        #: How many jobs may go together where the user has come to a limit of the site's.
        self._together = self.array_size
        self._plans = Plans()
        self._queue = Queue(self.read_queue)
        self._asking = Asking(self, self._queue)
        self._kill_rounds = {
            force: Rounds(partial(self._kill, force=force)) for force in (False, True)
        }

    # --- what a backend says -------------------------------------------------------------------

    def build_options(self, job: Job) -> tuple[str, ...]:
        """Give the options of a job's submission, but for its name and place; pure.

        Jobs for which they are equal can go into one array.

        Raises:
            ConfigError: If an option makes no sense, or the backend cannot express a resource.
        """
        raise NotImplementedError

    def build_head(self, options: Sequence[str], name: str, n_tasks: int | None) -> str:
        """Give the first lines of a script with these options: the shebang, and one line each.

        The shell is bash with ``-p``, and runs the wrapper of a job by itself.

        Args:
            options: As `build_options` gives them.
            name: The name of the submission.
            n_tasks: Of an array; None: it is none.
        """
        raise NotImplementedError

    async def submit_script(self, path: str, name: str, n_tasks: int | None) -> str:
        """Submit a script, whose head has all options; give the id of the submission.

        Raises:
            SubmitError: If it was refused, or that is not known (`maybe_submitted`).
        """
        raise NotImplementedError

    def build_jid(self, submission_id: str, place: int) -> str:
        """Give the native id of the task at this place of an array."""
        raise NotImplementedError

    async def read_queue(self) -> Mapping[str, QueueRow]:
        """Ask for all of the user's jobs at once; give them by native id. Ended ones may be there.

        Raises:
            SchedulerError: If there was no answer.
        """
        raise NotImplementedError

    async def read_accounting(self, jids: Sequence[str]) -> Mapping[str, QueueRow | None]:
        """Ask how jobs ended that the queue no longer explains; unknown ones are left out.

        Those that there was no time to ask for are None: they are asked for again.

        Raises:
            SchedulerError: If there was no answer.
        """
        return {}

    def was_removed(self, jid: str, rows: Mapping[str, QueueRow]) -> bool:
        """Whether it is certain that a job which the queue does not have was taken out of it."""
        return False

    def explain_no_start(
        self, job: Job, state: BackendState, rows: Mapping[str, QueueRow]
    ) -> BackendState:
        """Say why a job that is over never began: it was removed, or did not see its folder."""
        if state.phase is not Phase.ENDED:
            removed = self.was_removed(str(job.jid), rows)
            why = "it was removed from the queue by somebody else, before it started"
            ended = BackendState(Phase.ENDED, None, JobCause.REQUESTED, why)
            return ended if removed else state
        words = f" ({state.reason})" if state.reason else ""
        why = (
            f"{self.name} says that it ran{words}, but it left nothing in {self.mounted_dir(job)}: "
            "does its machine see that folder, and may it write there?"
        )
        return state._replace(rc=1, cause=JobCause.SETUP, reason=why)

    async def end_jobs(self, waiting: Sequence[str], running: Sequence[str], force: bool) -> None:
        """Remove waiting jobs; send TERM to all processes of running ones, or KILL with `force`.

        Raises:
            SchedulerError: If some could not be asked.
        """
        raise NotImplementedError

    # --- the plans' files ----------------------------------------------------------------------

    async def start(self) -> None:
        """Remove the plans of earlier runs that nobody needs any more."""
        try:
            await asyncio.to_thread(self._plans.prune_old, self.local_workdir)
        except OSError as exc:
            logger.warning("%s: plans of earlier runs stay: %s", self.name, exc)

    async def close(self) -> None:
        """Remove the plans whose jobs have ended."""
        self._plans.prune(self.local_workdir)

    # --- names and scripts ---------------------------------------------------------------------

    def submission_name(self, key: str) -> str:
        """Give the name under which a submission goes: it ends with the key, after a dot."""
        prefix = _NOT_IN_NAMES.sub("_", self.jobname_prefix)[:_MAX_PREFIX]
        return f"{prefix if prefix[:1].isalpha() else f'x{prefix}'}.{key}"

    @staticmethod
    def key_in(name: str) -> str:
        """Give the submission key in a name."""
        return name.rpartition(".")[2]

    def jobcmd_shebang(self, job: Job) -> str:
        """Give the first lines of a job's wrapper, with the options for submitting it by itself."""
        name = self.submission_name(self.submission_key(job))
        return self.build_head(self.build_options(job), name, None)

    # --- submission ----------------------------------------------------------------------------

    def plan_submissions(self, jobs: Sequence[Job]) -> list[Submission]:
        """Put jobs with equal options into arrays, in order; those that are alone stay so."""
        groups: dict[object, list[Job]] = {}
        homes: dict[int, tuple[str, str]] = {}  # a path is slow to give its two texts
        of_all: object = None
        is_same_for_all = not callable(self.resources)
        for job in jobs:
            has_own = job.resources is not None or job.scheduler_opts or not is_same_for_all
            options = None if has_own else of_all
            if options is None:
                try:
                    options = self.build_options(job)
                except Exception:  # noqa: BLE001  # its submission will say so; here it is alone
                    options = job
                else:
                    of_all = of_all if has_own else options
            home = homes.get(id(job.workdir))
            if home is None:
                home = homes[id(job.workdir)] = (str(job.workdir), str(job.workdir.mounted))
            groups.setdefault((options, self.claim_tag(job), home), []).append(job)
        plans = []
        for members in groups.values():
            most = max(1, min(self.array_size, self._together))
            for start in range(0, len(members), most):
                chunk = tuple(members[start : start + most])
                key = self.submission_key(chunk[0])
                plans.append(Submission(f"{key}-a{len(chunk)}" if len(chunk) > 1 else key, chunk))
        return plans

    async def submit_job(self, job: Job) -> int | str:
        """Submit one job by itself; give its native id."""
        answers = await self.submit(Submission(self.submission_key(job), (job,)))
        answer = answers[job]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def submit(self, submission: Submission) -> Mapping[Job, int | str | Exception]:
        """Submit one job, or several as an array. Its files are there before it leaves.

        Raises:
            SubmitError: If none was accepted.
        """
        answers: dict[Job, int | str | Exception] = {**await self._write_wrappers(submission.jobs)}
        jobs = [job for job in submission.jobs if job not in answers]
        if not jobs:
            return answers
        name = self.submission_name(submission.key)
        n_tasks = len(submission.jobs) if len(submission.jobs) > 1 else None
        self._plans.prune(self.local_workdir)
        try:
            path = self._write_script(submission, name, jobs)
        except OSError as exc:
            raise SubmitError(f"the plan {submission.key} cannot be written: {exc}") from exc
        submission_id = await self._submit_or_find(path, name, n_tasks)
        for place, job in enumerate(submission.jobs):
            if job not in answers:
                jid = submission_id if n_tasks is None else self.build_jid(submission_id, place)
                answers[job] = jid
                self._queue.touch(jid)
        return answers

    async def _write_wrappers(self, jobs: Sequence[Job]) -> dict[Job, Exception]:
        """Write the wrappers of jobs; tell of those for which that failed, and why."""
        failed: dict[Job, Exception] = {}
        turn_ends_s = time.perf_counter() + _TURN_S
        for job in jobs:
            try:
                self._write_wrapper(job)
                if self.may_restart(job):
                    job.write_file(f"job.restarts.{self.claim_tag(job)}", "")  # see `Job.clean`
            except ConfigError as exc:
                failed[job] = SubmitError(str(exc))
            except Exception as exc:  # noqa: BLE001  # a hook of a plugin's, perhaps: it is told
                failed[job] = exc
            if time.perf_counter() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = time.perf_counter() + _TURN_S
        return failed

    def _write_script(self, submission: Submission, name: str, jobs: Sequence[Job]) -> str:
        """Write what is submitted: a job's own wrapper, or a script that starts those of all.

        A job's place in the plan is its task's in the array; those of which there is no wrapper
        have a task that does nothing.
        """
        n_tasks = len(submission.jobs) if len(submission.jobs) > 1 else None
        if n_tasks is None and self.signal_before_end_s is None:
            wrapper = f"{jobs[0].local_dir}/{self.wrapper_name}"
            if os.path.getsize(wrapper) <= _MOST_SUBMITTED_BYTES:
                return wrapper
        ready = set(jobs)
        script = render_dispatch(
            head=self.build_head(self.build_options(jobs[0]), name, n_tasks),
            workdir=str(jobs[0].workdir.mounted),
            folders=[str(job.index) if job in ready else "-" for job in submission.jobs],
            tag=self.claim_tag(jobs[0]),
            wrapper_name=self.wrapper_name,
            place="0" if n_tasks is None else self.task_place,
            forward="" if self.signal_before_end_s is None else "USR1",
            restarted=self.restarted if self.may_restart(jobs[0]) else "",
            shell=JOBCMD_WRAPPER_LANG,
        )
        tasks = [self.submission_key(job) for job in submission.jobs]
        return self._plans.write(self.local_workdir, submission.key, tasks, submission.jobs, script)

    async def _submit_or_find(self, path: str, name: str, n_tasks: int | None) -> str:
        """Submit a script; where that may have failed or not, look it up."""
        try:
            submission_id = await self.submit_script(path, name, n_tasks)
        except SubmitError as exc:
            if exc.cause == JobCause.QUOTA:  # there may be room for fewer
                self._together = (n_tasks or 1) // 2
            if not exc.maybe_submitted:
                raise
            logger.info("%s: was %s submitted? %s", self.name, name, exc)
            try:
                queue = await self._queue.read()
            except SchedulerError:
                raise exc from None
            for row in queue.rows.values():
                if row.name == name:
                    return row.submission_id
            raise
        self._together = max(self._together, 2 * (n_tasks or 1))
        return submission_id

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Look in the queue for submissions of these keys: of jobs alone, of tasks, and of arrays.

        What is given for an array is for `id_in_submission`.
        """
        wanted = set(keys)
        return self._find(wanted, await self._queue.read()) if wanted else {}

    def id_in_submission(self, submission_id: int | str, position: int) -> int | str:
        """Give the native id of a task of what `find_submitted` has found."""
        text = str(submission_id)
        if not text.endswith(_ARRAY_MARK):
            return submission_id
        return self.build_jid(text.removesuffix(_ARRAY_MARK), position)

    def _find(self, wanted: set[str], queue: Snapshot) -> dict[str, int | str]:
        ids = {
            self.key_in(row.name): row.submission_id + ("" if row.place is None else _ARRAY_MARK)
            for row in queue.rows.values()
        }
        found: dict[str, int | str] = {key: ids[key] for key in wanted if key in ids}
        if len(found) < len(wanted):
            places = self._plans.find(self.local_workdir, wanted - found.keys())
            for key, (plan, place) in places.items():
                if plan in ids:
                    found[key] = self.id_in_submission(ids[plan], place)
        return found

    # --- asking --------------------------------------------------------------------------------

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether the queue has the job, under its id and its name, and it has not ended."""
        if job.jid is None:
            return False
        max_age_s = min(_SAME_LOOK_S, self.recheck_interval)
        queue = await self._queue.recent(max_age_s, [str(job.jid)])
        row = self.row_of(job, queue.rows)
        return row is not None and not has_ended(row)

    def row_of(self, job: Job, rows: Mapping[str, QueueRow | None]) -> QueueRow | None:
        """Find a job among others. Ids are used again: its name must be the right one, too."""
        row = rows.get(str(job.jid))
        if row is None:
            return None
        key, mine = self.key_in(row.name), self.submission_key(job)
        if row.place is None:
            return row if key == mine else None
        tasks = self._plans.tasks_of(self.local_workdir, key)
        return row if 0 <= row.place < len(tasks) and tasks[row.place] == mine else None

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Tell about jobs: see `Asking`.

        Raises:
            SchedulerError: If the queue did not answer.
        """
        return await self._asking.poll(jobs)

    def read_end(self, job: Job) -> _protocol.EndRecord | None:
        """Give what a job itself has said of its end; None: nothing, or that cannot be seen."""
        try:
            return _protocol.read_end_record(job.local_dir, self.claim_tag(job))
        except OSError:
            return None

    # --- killing -------------------------------------------------------------------------------

    async def kill_job(self, job: Job) -> None:
        """End a job: TERM, the grace period, KILL; return when the queue does not have it."""
        force_at_s = time.monotonic() + self.kill_grace_s
        pause_s = 0.05
        await self.kill_jobs([job])
        while await self.job_is_running(job):
            if time.monotonic() > force_at_s:
                await self.kill_jobs([job], force=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """End jobs by one look at the queue and a few calls; who asks meanwhile goes together.

        Only what has the right id and name is touched.

        Raises:
            SchedulerError: If the backend did not answer.
        """
        round_ = self._kill_rounds[force]
        await round_.join(jobs)

    async def _kill(self, jobs: Sequence[Job], *, force: bool) -> None:
        queue = await self._queue.read()
        lost = {self.submission_key(job): job for job in jobs if job.jid is None}
        for key, jid in self._find(set(lost), queue).items() if lost else ():
            lost[key].jid = jid
        waiting: list[str] = []
        running: list[str] = []
        for job in jobs:
            row = None if job.jid is None else self.row_of(job, queue.rows)
            if row is not None and not has_ended(row):
                (running if row.state.phase is Phase.RUNNING else waiting).append(str(job.jid))
        try:
            if waiting or running:
                await self.end_jobs(waiting, running, force)
        finally:
            for jid in (*waiting, *running):
                self._queue.touch(jid, hurry=True)
