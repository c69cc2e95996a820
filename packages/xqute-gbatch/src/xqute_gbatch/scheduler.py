"""The scheduler that runs jobs as Google Cloud Batch jobs, with their files in a bucket."""

from __future__ import annotations

import asyncio
import getpass
import importlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xqute.errors import ConfigError, SchedulerError, SubmitError, XquteWarning
from xqute.job import Job
from xqute.path import SpecPath
from xqute.scheduler import BackendState, Phase, Scheduler, Submission
from xqute.utils import logger

from .asking import Asking, for_each, tasks_left
from .client import BatchClient, check_message
from .groups import NativeId, parse_native_id, plan_groups, render_dispatch
from .options import (
    MOUNTED_WORKDIR,
    Mount,
    build_job_id,
    check_prefix,
    check_resources,
    find_cwd,
    parse_mounts,
    sanitize_label,
)
from .parse import KEY_LABEL, RUN_LABEL, run_of_key
from .spec import build_job, build_runnable, complete_config

__all__ = ["GbatchScheduler"]

#: Seconds between two uploads of a running job's outputs.
_UPLOAD_INTERVAL_S: Final = 10.0
#: The variable in which a Batch job tells its VM for which attempt it was made.
_ATTEMPT: Final = "XQUTE_GBATCH_ATTEMPT"
#: How long (seconds) jobs wait for others to go with.
_LINGER_S: Final = 2.0
#: How long rendering scripts may keep the event loop from others.
_TURN_S: Final = 0.005
_DELETES: Final = ("never", "killed", "ended")


class GbatchScheduler(Scheduler):
    """Runs jobs on Google Cloud Batch; the workdir is a folder of a bucket that jobs see mounted.

    The native job id is the id of the Batch job, which ends with what identifies the attempt: no
    other job is ever taken for it. In a group it is followed by ``/<index of the task>``.

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
        commands: How the job's script is run; ``{lang}`` stands for bash and ``{script}`` for the
            script. Without ``{script}`` both come last, as one word, or, where there is no
            `entrypoint`, so that bash is it, the script alone.
        runnables: What runs beside the job, as Batch spells it; a negative `order`: before it.
        client_options: The SDK's, as a mapping.
        bulk: Whether jobs that ask for the same go together, each as a task of one Batch job. Batch
            cannot end a task alone: such jobs can only be killed all together.
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
        bulk: bool = False,
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
            words = "gbatch talks to Batch itself; gcloud= is ignored"
            warnings.warn(words, XquteWarning, stacklevel=3)
        self._mount_path = str(config.pop("mounted_workdir", None) or MOUNTED_WORKDIR)
        super().__init__(*args, **config)
        check_prefix(self.jobname_prefix)
        self.project = project
        self.location = location
        self.client_options = client_options
        self.delete_jobs = delete_jobs
        self.bulk = bulk
        if bulk:
            self.linger_s = _LINGER_S
        self.upload_interval_s = _UPLOAD_INTERVAL_S
        mounts = [*parse_mounts(mount), *parse_mounts(volumes, "volumes")]
        if volume_as_cwd:
            self.cwd = self.cwd or find_cwd(volume_as_cwd, mounts)
        interface = {
            "network": network,
            "subnetwork": subnetwork,
            "noExternalIpAddress": no_external_ip_address,
        }
        machine = {"machineType": machine_type, "provisioningModel": provisioning_model}
        self.config, self.runnable_index = complete_config(
            self.config,
            volumes=[Mount(self._remote_workdir(), self._mount_path), *mounts],
            runnable=build_runnable(image_uri, entrypoint, commands),
            others=runnables,
            allocation={
                "serviceAccount": {"email": service_account},
                "network": {"networkInterfaces": [interface]},
                "instances": [{"policy": machine}],
            },
            user=_user(),
        )
        self._client: BatchClient | None = None
        #: The native ids of what was to be killed.
        self._killed: set[str] = set()
        #: The native ids of tasks whose creation was not answered, by their submission keys.
        self._unanswered: dict[str, str] = {}
        self._asking = Asking()

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
        mounted: str | os.PathLike[str] = self._mount_path
        if isinstance(workdir, SpecPath) and workdir.is_mounted():
            mounted = workdir.mounted
        workdir = SpecPath(text, mounted=mounted)
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
        # It takes a third of a second; others are not to wait for it.
        await asyncio.to_thread(importlib.import_module, "google.cloud.batch_v1")
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
            await client.delete({*ended, *self._asking.cancelled})
        elif self.delete_jobs == "killed":
            await client.delete(self._asking.cancelled)

    # --- submission ----------------------------------------------------------------------------

    def job_id(self, job: Job) -> str:
        """Give the id of the Batch job for the current attempt of a job."""
        return build_job_id(self.jobname_prefix, self.submission_key(job))

    def build_message(self, job: Job) -> dict[str, Any]:
        """Give the Batch job for the current attempt of a job, in REST spelling.

        Raises:
            ConfigError: If `config` was changed so that there is none.
        """
        script = f"{self.mounted_dir(job)}/{self.wrapper_name}"
        message = self._build(job, self.submission_key(job), script)
        if job.name:
            message["labels"]["name"] = sanitize_label(job.name)
        return message

    def _build(self, job: Job, key: str, script: str, n_tasks: int = 1) -> dict[str, Any]:
        is_silent = self.resources is None and job.resources is None
        return build_job(
            {**self.config, **(job.scheduler_opts or {})},
            self.runnable_index,
            script=script,
            labels={KEY_LABEL: sanitize_label(key), RUN_LABEL: sanitize_label(run_of_key(key))},
            resources=None if is_silent else check_resources(self.resources_of(job)),
            environment={_ATTEMPT: self.claim_tag(job)},
            n_tasks=n_tasks,
        )

    @property
    def jobcmd_wrapper_init(self) -> str:
        """Bash code that ends what a Batch job of an earlier attempt would run by mistake.

        Its VM may come late, and find the script of the attempt that came after it in its place.
        """
        return f'[[ ${{{_ATTEMPT}-$xq_tag}} == "$xq_tag" ]] || exit 121'

    def job_config_file(self, job: Job) -> SpecPath:
        """Write the Batch job of a job beside its script, for `gcloud batch jobs submit`; blocks.

        Raises:
            ConfigError: If there is no such Batch job.
            OSError: If it cannot be written.
        """
        message = self.build_message(job)
        check_message(message)
        name = f"{self.wrapper_name}.json"
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
            await asyncio.to_thread(job.write_file, self.wrapper_name, script)
        except OSError as exc:
            raise SubmitError(f"The script of {job!r} cannot be written: {exc}") from exc
        job_id = self.job_id(job)
        await self._connect().create(job_id, message.labels[KEY_LABEL], message)
        return job_id

    def plan_submissions(self, jobs: Sequence[Job]) -> list[Submission]:
        """Plan each job by itself or, in bulk, those together that ask Batch for the same."""
        if not self.bulk:
            return super().plan_submissions(jobs)
        alike: dict[object, list[Job]] = {}
        of_all: object = None
        for job in jobs:
            has_own = job.resources is not None or job.scheduler_opts or callable(self.resources)
            kind = None if has_own else of_all
            if kind is None:
                try:
                    kind = json.dumps(self._build(job, "xq-", "{script}"), sort_keys=True)
                except Exception:  # noqa: BLE001  # its submission will say so; here it is alone
                    kind = job
                else:
                    of_all = of_all if has_own else kind
            where = (str(job.workdir), str(job.workdir.mounted))
            alike.setdefault((kind, self.claim_tag(job), where), []).append(job)
        return [plan for jobs in alike.values() for plan in plan_groups(jobs, self.submission_key)]

    async def submit(self, submission: Submission) -> Mapping[Job, int | str | Exception]:
        """Submit one job, or several as the tasks of one Batch job.

        Raises:
            SubmitError: If none was accepted, or that is not known.
        """
        if len(submission.jobs) == 1:
            return await super().submit(submission)
        key, jobs = submission
        answers: dict[Job, int | str | Exception] = {}
        answers.update(await self._write_scripts(jobs))
        if len(answers) == len(jobs):
            return answers
        first = next(job for job in jobs if job not in answers)
        script = render_dispatch(
            str(first.workdir.mounted),
            ["-" if job in answers else str(job.index) for job in jobs],
            self.claim_tag(first),
            self.wrapper_name,
        )
        name = f"job.group.{key}"
        place = f"{self.mounted_dir(first)}/{name}"
        message = check_message(self._build(first, key, place, len(jobs)))
        try:
            await asyncio.to_thread(first.write_file, name, script)
        except OSError as exc:
            raise SubmitError(f"The script {name} cannot be written: {exc}") from exc
        job_id = build_job_id(self.jobname_prefix, key)
        ids = {job: str(NativeId(job_id, place)) for place, job in enumerate(jobs)}
        # Nothing is lost with their tasks when the others are to be ended.
        self._killed.update(ids[job] for job in answers)
        try:
            await self._connect().create(job_id, message.labels[KEY_LABEL], message)
        except (SubmitError, asyncio.CancelledError) as exc:
            if not isinstance(exc, SubmitError) or exc.maybe_submitted:
                self._unanswered.update({self.submission_key(job): ids[job] for job in jobs})
            raise
        return {**ids, **answers}

    async def _write_scripts(self, jobs: Iterable[Job]) -> dict[Job, Exception]:
        """Upload the scripts of jobs; give the errors of those for which that went wrong."""
        failed: dict[Job, Exception] = {}
        scripts: dict[Job, str] = {}
        turn_ends_s = time.perf_counter() + _TURN_S
        for job in jobs:
            try:
                scripts[job] = self.wrap_job_script(job)
            except Exception as exc:  # noqa: BLE001  # a hook of a plugin's, perhaps: it is told
                failed[job] = exc
            if time.perf_counter() > turn_ends_s:
                await asyncio.sleep(0)
                turn_ends_s = time.perf_counter() + _TURN_S

        async def write(job: Job) -> Exception | None:
            try:
                await asyncio.to_thread(job.write_file, self.wrapper_name, scripts[job])
            except OSError as exc:
                return SubmitError(f"The script of {job!r} cannot be written: {exc}")
            return None

        written = await for_each(scripts, write)
        failed.update({job: exc for job, exc in written.items() if exc is not None})
        return failed

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, str]:
        """Find, with one question, the Batch jobs that carry these keys.

        What is given for a group is for `id_in_submission`; of a job of one, its native id is.
        """
        wanted = {sanitize_label(key): key for key in keys}
        if not wanted:
            return {}
        jobs = await self._connect().list_jobs(map(run_of_key, wanted.values()), active=False)
        found = {wanted[job.key]: job.job_id for job in jobs if job.key in wanted}
        there = {job.job_id for job in jobs}
        for key in wanted.values() & self._unanswered.keys():
            if parse_native_id(self._unanswered[key]).job_id in there:
                found[key] = self._unanswered[key]
        return found

    def id_in_submission(self, submission_id: int | str, position: int) -> str:
        """Give the native id of a job of what `find_submitted` has found."""
        return str(parse_native_id(str(submission_id), position))

    # --- questions -----------------------------------------------------------------------------

    def _native_id(self, job: Job) -> NativeId | None:
        """Give what the current attempt of a job is called; None: its id is of something else."""
        key = self.submission_key(job)
        if job.jid is None:
            # Its creation was not answered, if there was one; of a Batch job alone the id is known.
            return parse_native_id(self._unanswered.get(key) or self.job_id(job))
        native = parse_native_id(str(job.jid))
        mine = build_job_id("x", key).removeprefix("x-")
        if native.place is not None:
            # That of its group ends as that of the first job: the same run and attempt, and a size.
            run, _, attempt = mine.split("-")
            tail = native.job_id.split("-")[-4:]
            return native if (tail[0], tail[2]) == (run, attempt) else None
        return native if native.job_id.endswith(f"-{mine}") else None

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether Batch has the job, queued or running.

        Raises:
            SchedulerError: If Batch does not say.
        """
        state = (await self.poll_jobs([job]))[job]
        return state.phase in (Phase.PENDING, Phase.RUNNING)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Ask about many jobs with one question for a thousand Batch jobs that have not ended.

        Those that are not in its answer have ended, and are asked about one by one; the tasks of
        groups that run or have ended, with one question for a thousand tasks of one.

        Raises:
            SchedulerError: If Batch does not say.
        """
        states: dict[Job, BackendState] = {}
        asked: dict[Job, NativeId] = {}
        for job in jobs:
            native = self._native_id(job)
            if native is None:
                states[job] = BackendState(Phase.GONE)
            else:
                asked[job] = native
        if not asked:
            return states
        runs = {run_of_key(self.submission_key(job)) for job in asked}
        told = await self._asking.ask(self._connect(), asked.values(), runs, self.lost_grace_s / 2)
        for job, native in asked.items():
            state = states[job] = told[native]
            if state.phase is Phase.PENDING and state.reason:
                job.reason = state.reason
        return states

    # --- kills ---------------------------------------------------------------------------------

    async def kill_job(self, job: Job) -> None:
        """Cancel the Batch job of a job."""
        await self.kill_jobs([job])

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Cancel the Batch jobs of many jobs; Batch ends what runs, with or without force.

        Of a group nothing is ended before all is to be that has not ended.

        Raises:
            ExceptionGroup: If some could not be cancelled; the others were.
        """
        natives = [native for job in jobs if (native := self._native_id(job)) is not None]
        if not natives:
            return
        self._killed.update(map(str, natives))
        ids = {native.job_id for native in natives if native.place is None}
        groups = {native.job_id: native for native in natives if native.place is not None}
        client = self._connect()
        left = await for_each(groups, client.list_tasks)
        errors: list[Exception] = []
        for job_id, native in groups.items():
            there = tasks_left(native, left[job_id])
            n_others = sum(str(other) not in self._killed for other in there)
            if not n_others:
                ids.add(job_id)
                continue
            words = f"{n_others} others of {job_id} have not ended and were not killed"
            errors.append(SchedulerError(f"Batch cannot end a task alone, and {words}"))
        self._asking.cancelled |= ids
        try:
            await client.cancel(ids)
        except* SchedulerError as group:
            errors.extend(group.exceptions)
        if errors:
            raise ExceptionGroup(f"{len(errors)} kills went wrong", errors)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid-{os.getuid()}"
