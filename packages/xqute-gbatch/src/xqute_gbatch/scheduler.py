"""The scheduler that runs each job as a Google Cloud Batch job, with its files in a bucket."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xqute.defaults import JobCause
from xqute.errors import ConfigError, SchedulerError, SubmitError
from xqute.job import Job
from xqute.path import SpecPath
from xqute.scheduler import BackendState, Phase, Scheduler
from xqute.utils import logger

from .client import BatchClient, BatchJob, check_message
from .options import (
    MOUNTED_WORKDIR,
    Mount,
    build_job_id,
    check_prefix,
    check_resources,
    parse_mounts,
    sanitize_label,
)
from .parse import KEY_LABEL, RUN_LABEL, parse_state, run_of_key
from .spec import build_job, complete_config

__all__ = ["GbatchScheduler"]

#: Seconds between two uploads of a running job's outputs.
_UPLOAD_INTERVAL_S: Final = 10.0
#: Jobs that are asked about one by one, at once.
_AT_ONCE: Final = 8
_DELETES: Final = ("never", "killed", "ended")


class GbatchScheduler(Scheduler):
    """Runs jobs on Google Cloud Batch; the workdir is a folder of a bucket that jobs see mounted.

    The native job id is the id of the Batch job, which ends with what identifies the attempt: no
    other job is ever taken for it.

    Args:
        args: As for `Scheduler`; the workdir is a ``gs://`` URI.
        project: The project that runs the jobs.
        location: Where, like ``europe-west1``.
        mount: Further buckets for jobs: ``gs://bucket/folder:/path``, or ``NAME=gs://bucket/folder``
            which is mounted at ``/mnt/disks/NAME``, also in ``$NAME``; one or a list.
        volumes: The same as `mount`.
        volume_as_cwd: The name or path of a mount that jobs work in; True: the only one.
        service_account: Whose rights the jobs have; an e-mail address.
        network: The VMs' network; likewise `subnetwork`.
        no_external_ip_address: Whether VMs have no address in the internet.
        machine_type: The VMs' type.
        provisioning_model: "STANDARD" or "SPOT".
        image_uri: The container that jobs run in; None: they run on the VM itself.
        entrypoint: The container's; bash by default.
        commands: How the job's script is run; ``{lang}`` stands for bash and ``{script}``, which
            must be there, for the script.
        runnables: What runs beside the job, as Batch spells it; a negative `order`: before it.
        client_options: The SDK's, as a mapping.
        delete_jobs: Which Batch jobs are deleted when the run ends: "never", those that were
            "killed", or all that "ended".
        config: The Batch job in REST spelling, and what `Scheduler` takes. It is completed, never
            overwritten, and may be changed until a job is submitted.

    Raises:
        ConfigError: If any of this makes no sense (a ValueError, too).
        TypeError: If a part of the Batch job is of a type that it cannot be.
    """

    name = "gbatch"

    def __init__(
        self,
        *args: Any,
        project: str,
        location: str,
        mount: str | Sequence[str] | None = None,
        volumes: str | Sequence[str] | None = None,
        volume_as_cwd: str | bool | None = None,
        service_account: str | None = None,
        network: str | None = None,
        subnetwork: str | None = None,
        no_external_ip_address: bool | None = None,
        machine_type: str | None = None,
        provisioning_model: str | None = None,
        image_uri: str | None = None,
        entrypoint: str | None = None,
        commands: str | Sequence[str] | None = None,
        runnables: Sequence[Mapping[str, Any]] | None = None,
        client_options: Mapping[str, Any] | None = None,
        delete_jobs: str = "never",
        **config: Any,
    ) -> None:
        names: dict[str, Any] = {"project": project, "location": location}
        for what, value in names.items():
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{what} must be the name of one: {value!r}")
        if delete_jobs not in _DELETES:
            raise ConfigError(f"delete_jobs must be one of {', '.join(_DELETES)}: {delete_jobs!r}")
        if config.pop("gcloud", None) is not None:
            _warn_about_gcloud()
        self._mount_path = str(config.pop("mounted_workdir", None) or MOUNTED_WORKDIR)
        super().__init__(*args, **config)
        check_prefix(self.jobname_prefix)
        self.project = project
        self.location = location
        self.client_options = client_options
        self.delete_jobs = delete_jobs
        self.upload_interval_s = _UPLOAD_INTERVAL_S
        mounts = [*parse_mounts(mount), *parse_mounts(volumes, "volumes")]
        if volume_as_cwd:
            self.cwd = self.cwd or _find_cwd(volume_as_cwd, mounts)
        self.config, self.runnable_index = complete_config(
            self.config,
            workdir=Mount(self._remote_workdir(), self._mount_path),
            mounts=mounts,
            service_account=service_account,
            network=network,
            subnetwork=subnetwork,
            no_external_ip_address=no_external_ip_address,
            machine_type=machine_type,
            provisioning_model=provisioning_model,
            image_uri=image_uri,
            entrypoint=entrypoint,
            commands=commands,
            runnables=runnables,
            user=_user(),
        )
        self._client: BatchClient | None = None
        #: Killed by us: where Batch says CANCELLED of one, nobody else has done it.
        self._killed: set[str] = set()
        #: Since when (loop time) Batch says that a job is over whose own words are not there yet.
        self._over_since_s: dict[str, float] = {}

    # --- the workdir ---------------------------------------------------------------------------

    @property
    def workdir(self) -> SpecPath:
        """The folder of the run, a ``gs://`` URI; jobs see it mounted. May be assigned."""
        return self._workdir

    @workdir.setter
    def workdir(self, workdir: str | os.PathLike[str]) -> None:
        text = str(workdir).rstrip("/")
        bucket, _, folder = text.removeprefix("gs://").partition("/")
        if not text.startswith("gs://") or not bucket or not folder:
            raise ConfigError(
                f"The workdir of {self.name} must be a folder of a bucket, gs://bucket/folder:"
                f" {str(workdir)!r}"
            )
        if not (isinstance(workdir, SpecPath) and workdir.is_mounted()):
            workdir = SpecPath(text, mounted=self._mount_path)
        self.staging = None
        self._workdir = workdir
        self._mounted_workdir = str(workdir.mounted)
        if hasattr(self, "runnable_index"):
            volume = self.config["taskGroups"][0]["taskSpec"]["volumes"][0]
            volume["gcs"]["remotePath"] = self._remote_workdir()
            volume["mountPath"] = self._mounted_workdir

    def _remote_workdir(self) -> str:
        return str(self._workdir).removeprefix("gs://")

    # --- connection ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect, and see that Batch lets us in; that it is away for a moment is no error.

        Raises:
            SchedulerError: If it does not: no credentials, no permission, no such project.
        """
        try:
            await self._connect().check()
        except SubmitError as exc:
            if not exc.transient:
                raise
            logger.warning("%s: %s", self.name, exc)

    def _connect(self) -> BatchClient:
        loop = asyncio.get_running_loop()
        if self._client is None or self._client.loop is not loop:
            self._client = BatchClient(self.project, self.location, self.client_options)
        return self._client

    async def close(self) -> None:
        """Delete the jobs that `delete_jobs` says, and close the connection."""
        client, self._client = self._client, None
        if client is None or client.loop is not asyncio.get_running_loop():
            return
        try:
            await self._delete_ended(client)
        except* SchedulerError as group:
            for exc in group.exceptions:
                logger.warning("%s: a Batch job was not deleted: %s", self.name, exc)
        finally:
            await client.close()

    async def _delete_ended(self, client: BatchClient) -> None:
        if self.delete_jobs == "ended":
            jobs = await client.list_jobs([self.run_id], active=False)
            ended = [job.job_id for job in jobs if not job.is_active]
            await client.delete({*ended, *self._killed})
        elif self.delete_jobs == "killed":
            await client.delete(self._killed)

    # --- submission ----------------------------------------------------------------------------

    def job_id(self, job: Job) -> str:
        """Give the id of the Batch job for the current attempt of a job."""
        return build_job_id(self.jobname_prefix, self.submission_key(job))

    def build_message(self, job: Job) -> dict[str, Any]:
        """Give the Batch job for the current attempt of a job, in REST spelling.

        Raises:
            ConfigError: If `config` was changed so that there is none.
        """
        key = self.submission_key(job)
        own = dict(job.scheduler_opts or {})
        labels = {KEY_LABEL: sanitize_label(key), RUN_LABEL: sanitize_label(run_of_key(key))}
        is_silent = self.resources is None and job.resources is None
        if job.name:
            labels["name"] = sanitize_label(job.name)
        return build_job(
            {**self.config, **own},
            self.runnable_index,
            script=f"{self.mounted_dir(job)}/{self._script_name}",
            labels=labels,
            resources=None if is_silent else check_resources(self.resources_of(job)),
        )

    @property
    def _script_name(self) -> str:
        return f"job.wrapped.{self.name}"

    def job_config_file(self, job: Job) -> SpecPath:
        """Write the Batch job of a job beside its script, for `gcloud batch jobs submit`; blocks.

        Raises:
            ConfigError: If there is no such Batch job.
            OSError: If it cannot be written.
        """
        message = self.build_message(job)
        check_message(message)
        name = f"{self._script_name}.json"
        job.write_file(name, json.dumps(message, indent=2) + "\n")
        return job.metadir / name

    async def submit_job(self, job: Job) -> str:
        """Upload the script of a job, and create its Batch job; give its id.

        Raises:
            SubmitError: If Batch did not take it, or did not say; `transient` if it may later.
            ConfigError: If there is no such Batch job.
        """
        message = check_message(self.build_message(job))
        script = self.wrap_job_script(job)
        try:
            await asyncio.to_thread(job.write_file, self._script_name, script)
        except OSError as exc:
            raise SubmitError(f"The script of {job!r} cannot be written: {exc}") from exc
        job_id = self.job_id(job)
        await self._connect().create(job_id, message.labels[KEY_LABEL], message)
        return job_id

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, str]:
        """Find, with one question, the Batch jobs that carry these keys."""
        wanted = {sanitize_label(key): key for key in keys}
        if not wanted:
            return {}
        jobs = await self._connect().list_jobs(map(run_of_key, wanted.values()), active=False)
        return {wanted[job.key]: job.job_id for job in jobs if job.key in wanted}

    # --- questions -----------------------------------------------------------------------------

    def _is_ours(self, job: Job) -> bool:
        """Whether the native id of a job is that of its current attempt."""
        tail = build_job_id("x", self.submission_key(job)).removeprefix("x-")
        return isinstance(job.jid, str) and job.jid.endswith(f"-{tail}")

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether Batch has the job, queued or running.

        Raises:
            SchedulerError: If Batch does not say.
        """
        if not self._is_ours(job):
            return False
        found = await self._connect().get(str(job.jid))
        return found is not None and found.is_active

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Ask about many jobs with one question for a thousand that have not ended.

        Those that are not in its answer have ended, and are asked about one by one.

        Raises:
            SchedulerError: If Batch does not say.
        """
        states: dict[Job, BackendState] = {}
        asked: dict[str, Job] = {}
        for job in jobs:
            if self._is_ours(job):
                asked[str(job.jid)] = job
            else:
                states[job] = BackendState(Phase.GONE)
        if not asked:
            return states
        client = self._connect()
        found: dict[str, BatchJob | None] = {}
        if len(asked) > 1:
            runs = {run_of_key(self.submission_key(job)) for job in asked.values()}
            active = await client.list_jobs(runs, active=True)
            found.update({job.job_id: job for job in active if job.job_id in asked})
        room = asyncio.Semaphore(_AT_ONCE)

        async def ask(job_id: str) -> None:
            async with room:
                found[job_id] = await client.get(job_id)

        async with asyncio.TaskGroup() as tasks:
            for job_id in asked.keys() - found.keys():
                tasks.create_task(ask(job_id))
        for job_id, job in asked.items():
            state = states[job] = self._judge(job_id, found[job_id])
            if state.phase is Phase.PENDING and state.reason:
                job.reason = state.reason
        return states

    def _judge(self, job_id: str, found: BatchJob | None) -> BackendState:
        """Give what Batch's word means."""
        if found is None:
            return BackendState(Phase.GONE, reason="Batch has no such job")
        state = parse_state(found.state, found.events)
        if state.phase is Phase.GONE and job_id not in self._killed:
            words = state.reason or "cancelled"
            return BackendState(Phase.ENDED, None, JobCause.REQUESTED, f"not by this run: {words}")
        if state.phase is not Phase.ENDED or state.cause is not None:
            return state
        # What the job has told of its end may be on its way through the mount still. So it is gone,
        # and no more is said, for half the time after which the engine would believe that.
        now_s = asyncio.get_running_loop().time()
        since_s = self._over_since_s.setdefault(job_id, now_s)
        if now_s - since_s < self.lost_grace_s / 2:
            return BackendState(Phase.GONE, reason=state.reason)
        return state

    # --- kills ---------------------------------------------------------------------------------

    async def kill_job(self, job: Job) -> None:
        """Cancel the Batch job of a job."""
        await self.kill_jobs([job])

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Cancel the Batch jobs of many jobs; Batch ends what runs, with or without force.

        Raises:
            ExceptionGroup: If some could not be cancelled; the others were.
        """
        ids = {str(job.jid) for job in jobs if self._is_ours(job)}
        if ids:
            self._killed |= ids
            await self._connect().cancel(ids)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"


def _find_cwd(wanted: str | bool, mounts: Sequence[Mount]) -> str:
    if wanted is True and len(mounts) == 1:
        return mounts[0].path
    for mount in mounts:
        if wanted in (mount.name, mount.path):
            return mount.path
    known = ", ".join(mount.name or mount.path for mount in mounts) or "none"
    raise ConfigError(f"volume_as_cwd must be one of the mounts ({known}): {wanted!r}")


def _warn_about_gcloud() -> None:
    import warnings

    from xqute.errors import XquteWarning

    warnings.warn("gbatch talks to Batch itself; gcloud= is ignored", XquteWarning, stacklevel=4)
