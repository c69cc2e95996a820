"""What a backend is: the abstract Scheduler, and the few types it speaks to the engine in.

A backend must have three methods: `submit_job`, `kill_job` and `job_is_running`. The others have
defaults built on these, and are there to be overridden where the backend can do better: many
submissions in one round trip, one question about all jobs, news without asking.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from . import _clouds, _files
from ._checks import check_count, check_seconds
from ._clouds.staging import staging_folder
from .defaults import (
    DEFAULT_ERROR_STRATEGY,
    DEFAULT_FIRST_RECHECK_S,
    DEFAULT_KILL_GRACE_S,
    DEFAULT_KILL_TIMEOUT_S,
    DEFAULT_LOST_GRACE_S,
    DEFAULT_NUM_RETRIES,
    DEFAULT_RECHECK_INTERVAL_S,
    DEFAULT_SCHEDULER_FORKS,
    DEFAULT_SUBMISSION_BATCH,
    JOBCMD_WRAPPER_LANG,
    JobCause,
    JobErrorStrategy,
    JobStatus,
)
from .errors import ConfigError, InvalidJobError, SubmitError, WorkdirError
from .job import Job, as_workdir
from .path import SpecPath
from .plugin import HookTable, snapshot
from .utils import logger

if TYPE_CHECKING:
    from typing import Self

    from .resources import Resources, ResourcesType
    from .utils import CommandType

__all__ = ["BackendState", "Phase", "Scheduler", "Submission"]

_NEVER_RAN = "the backend says that it failed without having run"


class Phase(Enum):
    """Where a backend says a job is."""

    PENDING = auto()
    RUNNING = auto()
    #: Over, and the backend knows how.
    ENDED = auto()
    #: The backend does not know the job (any more).
    GONE = auto()


class BackendState(NamedTuple):
    """What a backend says about one job.

    Attributes:
        phase: Where it is.
        rc: Its exit code, where the backend knows it.
        cause: Why it ended, a `JobCause`, where the backend knows more than an exit code.
        reason: The same in words, for people.
        jid: The native id that this is about; None: the job's current one. What is said of an
            earlier attempt is not taken for news of the current one.
    """

    phase: Phase
    rc: int | None = None
    cause: str | None = None
    reason: str = ""
    jid: int | str | None = None


class Submission(NamedTuple):
    """Jobs that go to the backend together, in one round trip.

    Attributes:
        key: The submission key, unique in the world; the backend carries it as a name or label.
        jobs: The jobs, in order.
    """

    key: str
    jobs: tuple[Job, ...]


class Scheduler(ABC):
    """Base of all backends.

    An instance can be made anywhere: it needs no event loop, daemon or credential until it works.

    Args:
        workdir: The folder of the run; made when the first job is.
        forks: How many jobs may be in the backend at once, pending ones included.
        error_strategy: "ignore", "retry" or "halt".
        num_retries: How often a job that failed is tried again under "retry".
        prescript: Bash code run before each command.
        postscript: Bash code run after each command.
        jobname_prefix: What job names begin with; None: the scheduler's name.
        submission_batch: How many submissions may be under way at once; None: the default.
        recheck_interval: Seconds between bulk queries for jobs that nothing was heard of; None: the
            default.
        cwd: Where commands run; None: where the backend puts them.
        timeout: Seconds after its start until a job is ended; 0: no limit.
        resources: Portable resources of every job: `Resources`, a dict of some of them, or what
            makes one of these from an attempt's number and the cause of the one before it.
        config: Native options of the backend. Taken out are ``mounted_workdir``, the workdir as
            jobs see it, and ``staging``: the folder of this machine below which jobs work whose
            workdir is in a cloud; None: one in the user's cache.

    Raises:
        ConfigError: If a keyword makes no sense (it is a ValueError, too).
        WorkdirError: If the workdir cannot be one (it is an OSError, too).
    """

    #: The entry-point name.
    name: ClassVar[str] = ""
    job_class: ClassVar[type[Job]] = Job
    #: The version of this interface that a scheduler was written for.
    core_api_version: ClassVar[int] = 1
    #: Whether the backend or the engine ends jobs at their timeout; False: the wrapper does.
    enforces_timeout: ClassVar[bool] = False
    #: Whether the backend has a queue, which ends jobs at their walltime; False: it is a timeout.
    has_queue: ClassVar[bool] = True
    #: Whether jobs run in the wrapper and so leave files; False only where a job is no process.
    uses_wrapper: ClassVar[bool] = True
    #: Whether jobs, once sent, may run on when this machine has lost its power.
    outlives_this_machine: ClassVar[bool] = True
    #: Whether the backend knows more of a failure than its exit code (out of memory, a time limit,
    #: preemption): it is asked before a failure is told.
    explains_failures: ClassVar[bool] = False
    #: Whether the process ids that jobs see are other than their host's, as in containers: then
    #: nobody who looks for one there concludes that a job is no more.
    has_own_pids: ClassVar[bool] = False
    #: Where jobs see a workdir in a cloud, by a mount of its bucket: seconds between two uploads of
    #: what a running job has written. 0: they see a file system, and the workdir is staged.
    upload_interval_s: float = 0
    #: The environment variable in which the backend gives the job its native id.
    native_id_variable: ClassVar[str] = ""

    __slots__: tuple[str, ...] = (
        "_error_strategy",
        "_hooks",
        "_mounted_workdir",
        "_staging_root",
        "_workdir",
        "config",
        "cwd",
        "driver",
        "first_recheck_s",
        "forks",
        "jobname_prefix",
        "kill_grace_s",
        "kill_timeout_s",
        "linger_s",
        "lost_grace_s",
        "num_retries",
        "postscript",
        "prescript",
        "recheck_interval",
        "refill_below",
        "resources",
        "run_id",
        "staging",
        "submission_batch",
        "timeout",
    )

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        forks: int = DEFAULT_SCHEDULER_FORKS,
        error_strategy: str = DEFAULT_ERROR_STRATEGY,
        num_retries: int = DEFAULT_NUM_RETRIES,
        prescript: str = "",
        postscript: str = "",
        jobname_prefix: str | None = None,
        submission_batch: int | None = None,
        recheck_interval: float | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = 0,
        resources: ResourcesType = None,
        **config: Any,
    ) -> None:
        if not self.name:
            raise ConfigError(f"{type(self).__qualname__} has no name")
        mounted_workdir = config.pop("mounted_workdir", None)
        staging = config.pop("staging", None)
        self.forks = check_count("forks", forks, 1)
        self.num_retries = check_count("num_retries", num_retries, 0)
        self.submission_batch = check_count(
            "submission_batch", submission_batch or DEFAULT_SUBMISSION_BATCH, 1
        )
        self.error_strategy = error_strategy
        self.prescript = prescript or ""
        self.postscript = postscript or ""
        self.jobname_prefix = jobname_prefix or self.name
        if recheck_interval is None:
            recheck_interval = DEFAULT_RECHECK_INTERVAL_S
        self.recheck_interval = check_seconds("recheck_interval", recheck_interval, positive=True)
        #: Seconds between TERM and KILL, and from TERM until a kill counts as not confirmed.
        self.kill_grace_s = DEFAULT_KILL_GRACE_S
        self.kill_timeout_s = DEFAULT_KILL_TIMEOUT_S
        #: Seconds until a job that nothing was heard of is asked about first; later ones grow.
        self.first_recheck_s = DEFAULT_FIRST_RECHECK_S
        #: Seconds from the backend's word that a job is gone to the verdict that it is lost.
        self.lost_grace_s = DEFAULT_LOST_GRACE_S
        #: Where many go in one submission: jobs wait up to `linger_s` seconds for others,
        #: or until fewer than this share of `forks` is in the backend. 0: they go at once.
        self.linger_s = 0.0
        self.refill_below = 0.5
        self.cwd = cwd
        self.timeout = check_seconds("timeout", timeout)
        if resources is not None:
            from .resources import check_resources

            check_resources(resources)
        self.resources: ResourcesType = resources
        self.config = config
        #: The random part of this run's claims and submission keys.
        self.run_id = os.urandom(4).hex()
        #: The engine that drives this scheduler, if one does.
        self.driver: Any = None
        self._hooks: HookTable | None = None
        self._staging_root = staging
        if mounted_workdir is None:
            self.workdir = workdir
        else:
            self.workdir = SpecPath(_files.absolute(workdir), mounted=mounted_workdir)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.forks} forks in {self.workdir}>"

    @property
    def workdir(self) -> SpecPath:
        """The folder of the run, absolute; it knows its mounted side. May be assigned."""
        return self._workdir

    @workdir.setter
    def workdir(self, workdir: str | os.PathLike[str]) -> None:
        workdir = as_workdir(workdir)
        self.staging: str | None = None
        if not _clouds.is_far(str(workdir)):
            _check_workdir(str(workdir))
        elif not self.upload_interval_s:
            self.staging = staging_folder(str(workdir), self._staging_root)
            if not workdir.is_mounted():
                workdir = SpecPath(str(workdir), mounted=self.staging)
        self._workdir = workdir
        self._mounted_workdir = str(workdir.mounted)

    @property
    def local_workdir(self) -> str:
        """The workdir as text or, where that is staged, the folder that stands for it here.

        What this process and jobs share is there, as a job's is in `Job.local_dir`.
        """
        return self.staging or str(self._workdir)

    @property
    def subm_batch(self) -> int:
        """The same as `submission_batch`: what pipeline engines know it by."""
        return self.submission_batch

    @property
    def error_strategy(self) -> JobErrorStrategy:
        """What a failed job leads to. May be assigned, also by its name."""
        return self._error_strategy

    @error_strategy.setter
    def error_strategy(self, strategy: str) -> None:
        try:
            self._error_strategy = JobErrorStrategy(strategy)
        except ValueError:
            choices = ", ".join(JobErrorStrategy)
            raise ConfigError(f"error_strategy must be one of {choices}: {strategy!r}") from None

    @property
    def hooks(self) -> HookTable:
        """The hooks of the run that drives this scheduler; without one, of all enabled plugins."""
        return snapshot() if self._hooks is None else self._hooks

    @hooks.setter
    def hooks(self, hooks: HookTable | None) -> None:
        self._hooks = hooks

    # --- what a backend must have --------------------------------------------------------------

    @abstractmethod
    async def submit_job(self, job: Job) -> int | str:
        """Submit one job and give its native id.

        Raises:
            SubmitError: If it was refused; it says whether that is transient. Any other exception
                counts as a failed submission, too.
        """

    @abstractmethod
    async def kill_job(self, job: Job) -> None:
        """Have the backend end a job and all its processes; one that has ended is no error."""

    @abstractmethod
    async def job_is_running(self, job: Job) -> bool:
        """Tell whether the backend still has the job, pending or running.

        False means that it is gone. An exception means that this is unknown.
        """

    # --- what a backend may do better ----------------------------------------------------------

    async def start(self) -> None:
        """Open what is needed to work. Called once by a run, before its first submission."""

    async def close(self) -> None:
        """Give back what `start` took. Jobs that are left running run on."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Be given what to call, on the event loop, when the backend tells of a job by itself."""

    def reserve(self, job: Job, others: Iterable[Job]) -> bool:
        """Take what a job needs beside what others have; False: there is no room for it now.

        Asked before each submission, apart from `forks`. Jobs wait in their order.

        Args:
            job: The job.
            others: Those that are on their way to the backend, or there.

        Raises:
            SubmitError: If there can never be room for it.
        """
        return True

    def plan_submissions(self, jobs: Sequence[Job]) -> list[Submission]:
        """Decide which jobs go to the backend together, in which order. Does nothing else."""
        return [Submission(self.submission_key(job), (job,)) for job in jobs]

    async def submit(self, submission: Submission) -> Mapping[Job, int | str | Exception]:
        """Submit in one round trip; give for each job its native id, or why it was not accepted.

        Raises:
            SubmitError: If none was accepted.
        """
        return {job: await self.submit_job(job) for job in submission.jobs}

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Have the backend end many jobs: TERM, and KILL for those that stay.

        Args:
            jobs: The jobs.
            force: False: ask them to end. True: they had their grace, end them.

        Raises:
            ExceptionGroup: If some could not be asked; the others were.
        """
        results = await asyncio.gather(*map(self.kill_job, jobs), return_exceptions=True)
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(jobs)} jobs could not be killed", errors)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Ask the backend about many jobs at once. A job that is missing in the answer is unknown.

        Raises:
            SchedulerError: If the backend did not answer: all are unknown.
        """
        states = {}
        for job in jobs:
            try:
                if job.current_status is JobStatus.SUBMITTED and (
                    await self.job_fails_before_running(job)
                ):
                    states[job] = BackendState(Phase.ENDED, None, JobCause.SUBMISSION, _NEVER_RAN)
                    continue
                running = await self.job_is_running(job)
            except Exception as exc:  # noqa: BLE001  # whatever it is: unknown
                logger.debug("%s: cannot ask about %r: %r", self.name, job, exc)
                continue
            states[job] = BackendState(Phase.RUNNING if running else Phase.GONE)
        return states

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Find, by their keys, submissions whose answer was lost; a missing key: not there.

        Raises:
            SchedulerError: If the backend did not answer: nothing is known, and no job is
                submitted again until it does.
        """
        return {}

    def id_in_submission(self, submission_id: int | str, position: int) -> int | str:
        """Give the native id of a job from that of the submission and its place in it, from 0."""
        return submission_id

    async def reattach(self, jobs: Sequence[Job]) -> None:
        """Take over jobs that an earlier run has submitted, if anything is to be done for that.

        Afterwards they are asked about, killed and watched like one's own. Each has the native id
        that was recorded, or none if that is not known.
        """

    async def job_fails_before_running(self, job: Job) -> bool:
        """Tell whether the backend says that a submitted job has failed without having run."""
        return False

    def may_restart(self, job: Job) -> bool:
        """Whether the backend was told that it may start an attempt of a job again by itself.

        The wrapper then takes ``xq_restart``, which `jobcmd_wrapper_init` sets, for whether it has.
        Each start has an end of its own; whoever is told by the backend that it starts the attempt
        no more has to make that of the last one the attempt's.
        """
        return False

    @property
    def leaves_events(self) -> bool:
        """Whether jobs announce changes in the event spool; False where something is faster."""
        return self.uses_wrapper

    # --- making jobs and their scripts ---------------------------------------------------------

    def create_job(
        self, index: int, cmd: CommandType, envs: Mapping[str, object] | None = None
    ) -> Job:
        """Make a job of this scheduler's `job_class`, with its folder.

        Raises:
            WorkdirError: If its folder cannot be made.
        """
        try:
            job = self.job_class(
                index,
                cmd,
                workdir=self.workdir,
                envs=envs,
            )
            self.stage(job)
            return job  # noqa: TRY300  # an OSError may come from either line
        except OSError as exc:
            raise WorkdirError(exc.errno, f"Cannot make the folder of job {index}: {exc}") from exc

    def stage(self, job: Job) -> None:
        """Have a job work in the staging folder, if its workdir is one that needs it.

        Raises:
            InvalidJobError: If it does, and is not the workdir of the run.
            OSError: If its folder cannot be made.
        """
        if not job.is_far or self.upload_interval_s:
            return
        if self.staging is None or str(job.workdir) != str(self._workdir):
            raise InvalidJobError(f"Job {job.index} is in {job.workdir}, where it cannot work")
        job.stage(self.staging)

    def mounted_dir(self, job: Job) -> str:
        """Give the folder of a job as the job sees it, as text."""
        workdir = job.workdir
        if workdir is self._workdir or str(workdir) == str(self._workdir):
            return f"{self._mounted_workdir}/{job.index}"
        return f"{workdir.mounted}/{job.index}"

    def submission_key(self, job: Job) -> str:
        """Give the key under which the backend carries the current attempt of a job."""
        return f"xq-{job.run_id or self.run_id}-{job.index}-{job.trial_count}"

    def claim_tag(self, job: Job) -> str:
        """Give what the claims of the current attempt of a job are named after."""
        return f"{job.run_id or self.run_id}-{job.trial_count}"

    @property
    def jobcmd_wrapper_init(self) -> str:
        """Bash code near the top of the wrapper, before the job is claimed: definitions only."""
        return ""

    def jobcmd_shebang(self, job: Job) -> str:
        """Give the first line of the wrapper; lines with a backend's own options may follow it."""
        return f"#!{JOBCMD_WRAPPER_LANG} -p"

    def jobcmd_init(self, job: Job) -> str:
        """Give the bash code that plugins want run before the prescript."""
        return "\n".join(self.hooks.call("on_jobcmd_init", self, job))

    def jobcmd_prep(self, job: Job) -> str:
        """Give the bash code that plugins want run before the command."""
        return "\n".join(self.hooks.call("on_jobcmd_prep", self, job))

    def jobcmd_end(self, job: Job) -> str:
        """Give the bash code that plugins want run after the command."""
        return "\n".join(self.hooks.call("on_jobcmd_end", self, job))

    def wrap_job_script(self, job: Job) -> str:
        """Render the wrapper of a job's current attempt. Bytes that are no text are surrogates.

        Raises:
            InvalidJobError: If the command or an environment variable cannot be passed.
        """
        from ._script import render_script

        return render_script(self, job)

    def environment_of(self, job: Job) -> dict[str, str]:
        """Give the variables that the wrapper exports: who the job is, and the job's own."""
        return {
            "XQUTE_JOB_INDEX": str(job.index),
            "XQUTE_METADIR": self._mounted_workdir,
            "XQUTE_JOB_METADIR": self.mounted_dir(job),
            "XQUTE_JOB_TRIAL": str(job.trial_count),
            **({"CUDA_VISIBLE_DEVICES": ",".join(job.gpus)} if job.gpus else {}),
            **{name: str(value) for name, value in job.envs.items()},
        }

    @property
    def wrapper_name(self) -> str:
        """What the file of a job's wrapper is called."""
        return f"job.wrapped.{self.name}"

    def wrapped_job_script(self, job: Job) -> SpecPath:
        """Write the wrapper of a job, readable by the user only, and give its path.

        Raises:
            InvalidJobError: See `wrap_job_script`.
            SubmitError: If the disk takes nothing just now (it is full, say); transient.
            OSError: If it cannot be written for another reason.
        """
        self._write_wrapper(job)
        return job.metadir / self.wrapper_name

    def _write_wrapper(self, job: Job) -> str:
        """Write the wrapper of a job, and give its text."""
        name = self.wrapper_name
        script = self.wrap_job_script(job)
        try:
            job.write_file(name, script)
        except OSError as exc:
            if not _files.may_pass(exc):
                raise
            # Nothing was sent yet, and later the disk may take it.
            raise SubmitError(f"{name} cannot be written: {exc}", transient=True) from exc
        return script

    def timeout_of(self, job: Job) -> float:
        """Give the seconds after its start until a job is ended; 0: no limit.

        Its timeout or, where no queue sees to that, its walltime if that is less.
        """
        timeout_s = self.timeout if job.timeout is None else job.timeout
        if self.has_queue or (self.resources is None and job.resources is None):
            return timeout_s
        walltime_s = self.resources_of(job).walltime_s
        return min(timeout_s or walltime_s, walltime_s) if walltime_s else timeout_s

    def resources_of(self, job: Job, *, own: bool = True) -> Resources:
        """Give what the current attempt of a job asks for.

        A callable is not told of attempts that were never made.

        Args:
            job: The job.
            own: Whether what it says by itself counts.

        Raises:
            ConfigError: If that makes no sense, or whatever a callable of the user's raises.
        """
        from .resources import resolve_resources

        of_job = job.resources if own else None
        attempt = job.trial_count - job.unmade
        return resolve_resources(self.resources, of_job, attempt, job.last_cause)

    # --- one job at a time, without an engine: see `_standalone` -------------------------------

    async def submit_job_and_update_status(self, job: Job) -> None:
        """Submit a job unless it is in the backend already; hooks included.

        A failure to submit is told in ``job.stderr``, as rc -2 and as FAILED; it does not raise.
        """
        from . import _standalone

        await _standalone.submit(self, job)

    async def kill_job_and_update_status(self, job: Job) -> None:
        """Kill a job, hooks included, and return when the backend has been asked.

        Where a run drives the job, this is a request to that run.
        """
        from . import _standalone

        await _standalone.kill(self, job)

    async def retry_job(self, job: Job) -> None:
        """Put the files of an attempt aside and submit the next one."""
        job.clean(retry=True)
        job.trial_count += 1
        job.enter(JobStatus.RETRYING)
        await self.submit_job_and_update_status(job)

    async def polling_jobs(self, jobs: Sequence[Job], on: str, polling_counter: int = 0) -> bool:
        """Look at jobs once, calling the hooks for what has changed.

        Args:
            jobs: The jobs.
            on: "submittable": is there room for another? "all_done": have all ended?
            polling_counter: How often this was called, for `on_job_polling`.

        Raises:
            ValueError: If `on` is neither.
        """
        if on not in ("submittable", "all_done"):
            raise ValueError(f"Jobs are polled on 'submittable' or 'all_done', not {on!r}")
        from . import _standalone

        n_in_backend, n_ended = await _standalone.poll(self, jobs, polling_counter)
        return n_in_backend < self.forks if on == "submittable" else n_ended == len(jobs)

    async def kill_running_jobs(self, jobs: Sequence[Job]) -> None:
        """Kill those of the jobs that are in the backend, hooks included."""
        running = [job for job in jobs if job.status in (JobStatus.SUBMITTED, JobStatus.RUNNING)]
        await asyncio.gather(*map(self.kill_job_and_update_status, running))

    async def job_is_submitted_or_running(self, job: Job) -> bool:
        """Tell whether the backend has the job; False where that is unknown."""
        if job.jid is None:
            return False
        try:
            return await self.job_is_running(job)
        except Exception as exc:  # noqa: BLE001  # whatever it is: unknown
            logger.debug("%s: cannot ask about %r: %r", self.name, job, exc)
            return False


def _check_workdir(workdir: str) -> None:
    """Say at once if `workdir` cannot become a folder that we can write to."""
    there = workdir
    while not os.path.lexists(there) and there != os.path.dirname(there):
        there = os.path.dirname(there)
    if not os.path.isdir(there):
        raise WorkdirError(f"The workdir {workdir} cannot be used: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise WorkdirError(f"The workdir {workdir} cannot be used: {there} is not writable")
    try:
        _files.check_way(there)
    except PermissionError as exc:
        raise WorkdirError(f"The workdir {workdir} cannot be used: {exc}") from exc
