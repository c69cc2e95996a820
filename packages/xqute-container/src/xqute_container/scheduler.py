"""The scheduler that runs each job in a container of its own."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import os
import shlex
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from xqute.errors import ConfigError, SchedulerError, SubmitError, XquteWarning
from xqute.job import Job
from xqute.path import SpecPath
from xqute.resources import Resources
from xqute.scheduler import BackendState, Phase, Scheduler

from . import folders
from .client import Client, EngineAwayError, Traits
from .connect import connect
from .options import (
    DEFAULT_MOUNTED_WORKDIR,
    Runtime,
    Volume,
    check_envs,
    check_image,
    check_pull,
    check_sources,
    detect_runtime,
    parse_cwd_volume,
    parse_entrypoint,
    parse_user,
    parse_volumes,
)
from .parse import Stage, explain_refusal
from .spec import (
    FORWARDER,
    LABEL_HOST,
    LABEL_KEEP,
    LABEL_KEY,
    LABEL_METADIR,
    LABEL_TAG,
    LABEL_WORKDIR,
    Spec,
    build_exec_argv,
    build_run_argv,
    build_script_arguments,
)
from .watching import Watching

__all__ = ["ContainerScheduler"]

T = TypeVar("T")

#: How many things may be asked of an engine at the same time.
_THREADS = 16
#: What resources have that a container is not.
_FOREIGN_RESOURCES = ("gpu_type", "walltime_s", "disk_mib", "queue", "account", "constraint")


class ContainerScheduler(Scheduler):
    """Runs each job in a container of its own, which sees the workdir and what else it is given.

    Args:
        image: What containers are made of: a name with a tag or digest, also after ``docker://``;
            an archive of an image; with Apptainer a .sif file, a folder or a URI.
        entrypoint: What runs the job's script: a bash (4.2 or later) in the image.
        bin: The program: docker, podman, apptainer or singularity; any other is taken for one
            like Docker.
        volumes: What else jobs see of the host: ``host:container``, ``host:container:ro``, or
            ``NAME=host``, which jobs find in ``$NAME``.
        envs: Environment variables of all jobs.
        remove: Whether a container is removed once the end of its job is recorded.
        user: As whom jobs run; None: as you.
        bin_args: Options for the program, which then is used in the place of its engine's socket.
        volume_as_cwd: A volume in which jobs run: a host path, or as in `volumes`.
        mount: Another word for `volumes`.
        pull: When an image is fetched: "missing", "always" (once a run) or "never".
        socket: The path or URL of the engine's socket; True: look for it; False: use the program;
            None: the faster one.
        kwargs: Those of `Scheduler`.

    Raises:
        ConfigError: If one of them makes no sense, or there is no such program.
    """

    name = "container"
    #: Jobs that announce their ends do so before the engine says what it knows of them.
    explains_failures = True
    #: Also where a container has the host's name: Apptainer's, or with ``--network=host``.
    has_own_pids = True

    def __init__(
        self,
        image: str,
        entrypoint: str | Sequence[str] = "/bin/bash",
        bin: str = "docker",  # noqa: A002  # the name is fixed
        volumes: str | Iterable[str] | None = None,
        envs: Mapping[str, object] | None = None,
        remove: bool = True,
        user: str | int | None = None,
        bin_args: Sequence[str] | None = None,
        *,
        volume_as_cwd: str | None = None,
        mount: str | Iterable[str] | None = None,
        pull: str = "missing",
        socket: str | bool | None = None,
        **kwargs: Any,
    ) -> None:
        if shutil.which(bin) is None:
            raise ConfigError(f"Container runtime binary {bin!r} not found: install it or name it")
        self.bin = bin
        self.runtime = detect_runtime(os.path.realpath(shutil.which(bin) or bin))
        self.image = check_image(image, self.runtime)
        self.entrypoint = parse_entrypoint(entrypoint)
        self.envs = check_envs(envs or {})
        self.remove = remove
        self.user = f"{os.getuid()}:{os.getgid()}" if user is None else str(user)
        self.bin_args = list(bin_args or ())
        self.pull = check_pull(pull)
        self.socket = socket
        self.volume_as_cwd = volume_as_cwd
        self._check_user()
        if volumes is not None and mount is not None:
            raise ConfigError("volumes and mount are the same: give one of them")
        self.volumes = _as_list(volumes if mount is None else mount)
        self._mounted = str(kwargs.pop("mounted_workdir", None) or DEFAULT_MOUNTED_WORKDIR)
        super().__init__(**kwargs)
        if self.config:
            warnings.warn(_unknown_keywords(self.config), XquteWarning, stacklevel=2)
        self._reset()
        self._volumes()

    def _reset(self) -> None:
        """Know of no engine: the next that is asked is found anew."""
        self._pool: ThreadPoolExecutor | None = None
        self._client: Client | None = None
        self._watching: Watching | None = None
        self._opening = threading.Lock()
        #: The settings that `_open` has seen to, and the name of the image that it got.
        self._opened: tuple[object, ...] | None = None
        self._image_name = self.image
        self._report: Callable[[Job, BackendState], None] | None = None

    # --- settings ------------------------------------------------------------------------------

    @property
    def workdir(self) -> SpecPath:
        """The folder of the run; jobs see it at `DEFAULT_MOUNTED_WORKDIR`. May be assigned."""
        return self._workdir

    @workdir.setter
    def workdir(self, workdir: str | os.PathLike[str]) -> None:
        old_entry = self._workdir_entry if hasattr(self, "_workdir") else None
        if not (isinstance(workdir, SpecPath) and workdir.is_mounted()):
            text = str(workdir)
            workdir = text if "://" in text else os.path.abspath(text)
            workdir = SpecPath(workdir, mounted=self._mounted)
        Scheduler.workdir.fset(self, workdir)  # type: ignore[attr-defined]  # the base's setter
        if old_entry in self.volumes:
            self.volumes[self.volumes.index(old_entry)] = self._workdir_entry
        else:
            self.volumes.append(self._workdir_entry)

    @property
    def _workdir_entry(self) -> str:
        return f"{self.local_workdir}:{self.workdir.mounted}"

    @property
    def leaves_events(self) -> bool:
        """Whether jobs announce changes: where the engine tells of them late, and they can."""
        if self._client is None:
            return True
        traits = self._client.traits
        return not traits.is_prompt and self._host_uid(traits) == os.getuid()

    @property
    def jobcmd_wrapper_init(self) -> str:
        """Code that passes the signals of an engine on to all processes of a job."""
        return "" if self.runtime is Runtime.APPTAINER else FORWARDER

    def jobcmd_shebang(self, job: Job) -> str:
        """Give the command line that does what is done with a job, as a comment."""
        spec = self._build_spec(job, Traits(self.runtime), check_image(self.image, self.runtime))
        if self.runtime is Runtime.APPTAINER:
            argv = build_exec_argv(self.bin, spec, self.bin_args)
        else:
            argv = build_run_argv(self.bin, self.runtime, spec, self.bin_args, ["--rm"])
        return f"#!{shlex.join(argv[: -len(spec.arguments)])}"

    def environment_of(self, job: Job) -> dict[str, str]:
        """Give the variables of a job: those of named volumes, of all jobs, and its own.

        Raises:
            ConfigError: If one cannot be passed.
        """
        own = super().environment_of(job)
        named = {volume.name: volume.target for volume in self._volumes() if volume.name}
        return {**named, **check_envs(self.envs), **own}

    @property
    def wrapper_name(self) -> str:
        """What the file of a job's wrapper is called: ``job.wrapped.docker`` or ``.apptainer``."""
        return f"job.wrapped.{'apptainer' if self.runtime is Runtime.APPTAINER else 'docker'}"

    def _volumes(self) -> tuple[Volume, ...]:
        """Give what all jobs see of the host, the workdir among it.

        Raises:
            ConfigError: If a volume cannot be understood, or the workdir is not among them.
        """
        cwd = [] if self.volume_as_cwd is None else [parse_cwd_volume(self.volume_as_cwd)]
        volumes = parse_volumes(self.volumes, cwd)
        if not any(volume.source == self.local_workdir for volume in volumes):
            raise ConfigError(f"volumes: the workdir is not among them: {self.local_workdir}")
        return volumes

    # --- the container of a job ----------------------------------------------------------------

    def _build_spec(self, job: Job, traits: Traits, image: str) -> Spec:
        """Say what the container of a job is to be.

        Raises:
            ConfigError: If that makes no sense.
        """
        limits = self._limits_of(job)
        user, userns, groups = self._user_in(traits)
        workdir, here = self.local_workdir, os.path.dirname(job.local_dir)
        volumes = self._volumes()
        metadir = self.mounted_dir(job)
        if self._host_uid(traits) != os.getuid():
            # Of our folders, this user is to see the job's alone.
            volumes = tuple(volume for volume in volumes if volume.source != workdir)
            volumes = (*volumes, Volume(job.local_dir, metadir))
        elif here != workdir:
            volumes = (*volumes, Volume(here, str(job.workdir.mounted)))
        labels = {
            LABEL_KEY: self.submission_key(job),
            LABEL_METADIR: job.local_dir,
            LABEL_TAG: self.claim_tag(job),
            **self._labels,
        }
        if not self.remove:
            labels[LABEL_KEEP] = "yes"
        return Spec(
            key=self.submission_key(job),
            image=image,
            entrypoint=tuple(self.entrypoint),
            arguments=build_script_arguments(self.entrypoint, f"{metadir}/{self.wrapper_name}"),
            labels=labels,
            volumes=volumes,
            working_dir=self._working_dir,
            user=user,
            userns=userns,
            groups=groups,
            cpus=limits.cpus if limits else None,
            memory_mib=limits.memory_mib if limits else None,
            gpus=limits.gpus if limits else 0,
        )

    @property
    def _labels(self) -> dict[str, str]:
        return {LABEL_WORKDIR: str(self.workdir), LABEL_HOST: os.uname().nodename}

    @property
    def _working_dir(self) -> str:
        if self.volume_as_cwd is not None:
            return parse_cwd_volume(self.volume_as_cwd).target
        return str(self.workdir.mounted)

    def _limits_of(self, job: Job) -> Resources | None:
        if self.resources is None and job.resources is None:
            return None
        limits = self.resources_of(job)
        foreign = [name for name in _FOREIGN_RESOURCES if getattr(limits, name) is not None]
        if foreign or limits.nodes > 1:
            what = ", ".join(foreign or ["nodes"])
            raise ConfigError(f"resources: containers know cpus, memory_mib and gpus, not {what}")
        return limits

    def _user_in(self, traits: Traits) -> tuple[str, str, tuple[int, ...]]:
        """Give user, user namespace and further groups, such that files are the user's."""
        if self.runtime is Runtime.APPTAINER:
            return "", "", ()
        userns = "host" if traits.remaps_users else ""
        if parse_user(self.user).uid != os.getuid():
            return self.user, userns, ()
        if traits.is_rootless:
            # Root in there is the engine's user; only Podman can show this one under the same id.
            return (self.user, "keep-id", ()) if traits.is_podman else ("0:0", "", ())
        groups = () if os.getuid() == 0 else tuple(os.getgroups())
        return self.user, userns, groups

    def _host_uid(self, traits: Traits) -> int | None:
        """Give the jobs' user on this host, us if it may do what we may; None: nobody knows."""
        uid = 0 if self.user.partition(":")[0] == "root" else parse_user(self.user).uid
        if self.runtime is Runtime.APPTAINER or uid in (0, os.getuid()):
            return os.getuid()
        return folders.find_host_uid(uid) if traits.is_rootless and uid is not None else uid

    def _check_user(self) -> None:
        uid = parse_user(self.user).uid
        if self.runtime is Runtime.APPTAINER and uid != os.getuid():
            raise ConfigError(f"user {self.user!r}: with Apptainer jobs run as who starts them")

    # --- what the engine asks for --------------------------------------------------------------

    async def start(self) -> None:
        """Reach the container engine, see to image and volumes, and begin to hear of ends.

        Raises:
            SchedulerError: If the engine does not answer, or has no such image.
            ConfigError: If a volume is not there.
        """
        watching = await self._ready()
        await watching.sweep()
        watching.listen(asyncio.get_running_loop())

    async def close(self) -> None:
        """Hear of no more, and remove containers that are over. Jobs that run, run on."""
        watching, pool = self._watching, self._pool
        if watching is not None:
            await watching.close()
        if pool is not None:
            pool.shutdown(wait=False)
        self._reset()

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Be told what to call when a container has started, or ended."""
        self._report = report

    async def submit_job(self, job: Job) -> int | str:
        """Start the container of a job; give its id.

        Raises:
            SubmitError: If it does not run, or a setting makes no sense.
        """
        try:
            watching = await self._ready()
            client = watching.client
            self._check_sources(client)
            spec = self._build_spec(job, client.traits, self._image_name)
        except EngineAwayError as exc:
            raise SubmitError(str(exc), transient=True) from exc
        except (SchedulerError, ConfigError) as exc:
            raise SubmitError(str(exc)) from exc
        script = str(self.wrapped_job_script(job))
        uid = self._host_uid(client.traits)
        if uid != os.getuid():
            folders.open_folder(job.local_dir, uid)
            folders.open_file(script, uid)
        watching.add([job])
        try:
            native_id: str = await self._call(client.start, spec)
        except EngineAwayError as exc:
            raise SubmitError(str(exc), transient=True, maybe_submitted=True) from exc
        except SubmitError:
            watching.drop(job)
            raise
        if not self.leaves_events:
            watching.say(job, BackendState(Phase.RUNNING))
        return native_id

    async def kill_job(self, job: Job) -> None:
        """Send TERM to all processes of a job."""
        await self.kill_jobs([job])

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Send TERM, or KILL, to all processes of jobs.

        Raises:
            ExceptionGroup: If some could not be sent it; the others were.
        """
        if not jobs:
            return
        watching = await self._ready()
        if force:
            watching.note_killed(jobs)
        signal = partial(watching.client.signal, force=force)
        results = await asyncio.gather(
            *[self._call(signal, watching.wanted(job)) for job in jobs], return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, Exception)]
        if errors:
            raise ExceptionGroup(f"{len(errors)} of {len(jobs)} jobs could not be killed", errors)

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether the container of a job is there and has not ended."""
        states = await (await self._ready()).ask([job])
        return states[job].phase in (Phase.PENDING, Phase.RUNNING)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Ask about many jobs at once.

        Raises:
            SchedulerError: If the engine did not answer.
        """
        return await (await self._ready()).ask(jobs) if jobs else {}

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Find containers by their keys; one that was made and never started is started.

        Raises:
            SchedulerError: If the engine did not answer.
        """
        client = (await self._ready()).client
        wanted = set(keys)
        found = [one for one in await self._call(client.look) if one.key in wanted]
        for container in found:
            if container.stage is Stage.CREATED:
                await self._call(client.wake, container)
        return {container.key: container.id for container in found}

    async def reattach(self, jobs: Sequence[Job]) -> None:
        """Follow jobs that an earlier driver has started; one that it only made is started.

        One whose id nobody knows has its key for it, which is the name of its container: so it is
        asked about like the others, also when it has ended or its container is gone.

        Raises:
            SchedulerError: If the engine did not answer.
        """
        watching = await self._ready()
        watching.add(jobs)
        for job in jobs:
            if job.jid is None:
                job.jid = self.submission_key(job)
        await self.find_submitted(map(self.submission_key, jobs))

    def explain(self, job: Job, words: str) -> str:
        """Say why the container of a job did not run, from the engine's words."""
        if self._client is None:
            return words
        traits = self._client.traits
        return explain_refusal(words, self._build_spec(job, traits, self.image), traits.name)

    # --- how it is asked -----------------------------------------------------------------------

    def _call(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Run a function that blocks in one of a few threads."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="xqute-container")
        return asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def _ready(self) -> Watching:
        """Give what follows containers, after the settings were seen to.

        Raises:
            SchedulerError: If the engine does not answer, or has no such image.
            ConfigError: If a setting makes no sense.
        """
        settings = (self.image, self.pull, str(self.workdir), *self.volumes, self.volume_as_cwd)
        if self._watching is None or self._opened != settings:
            await self._call(self._open, settings)
        assert self._watching is not None  # noqa: S101  # for the type checker
        self._watching.report = self._report
        return self._watching

    def _open(self, settings: tuple[object, ...]) -> None:
        """Reach the engine, and see to image and volumes; several threads may call this."""
        with self._opening:
            if self._opened == settings:
                return
            self._volumes()
            if self._watching is None:
                client = connect(
                    self.runtime,
                    self.bin,
                    socket=self.socket,
                    bin_args=self.bin_args,
                    labels=self._labels,
                )
                self._client = client
                self._watching = Watching(client, self, self._call, remove=lambda: self.remove)
            client = self._watching.client
            self._check_sources(client)
            self._image_name = client.ensure_image(
                check_image(self.image, self.runtime), check_pull(self.pull)
            )
            self._opened = settings

    def _check_sources(self, client: Client) -> None:
        """See that all volumes are there: some engines would make what is missing.

        Raises:
            ConfigError: If one is not; it is named.
        """
        if client.traits.is_local:
            here = self.local_workdir
            check_sources(volume for volume in self._volumes() if volume.source != here)


def _as_list(volumes: str | Iterable[str] | None) -> list[str]:
    return [volumes] if isinstance(volumes, str) else list(volumes or ())


def _unknown_keywords(config: Mapping[str, Any]) -> str:
    known = [
        name
        for cls in (ContainerScheduler, Scheduler)
        for name in inspect.signature(cls).parameters
        if name not in ("config", "kwargs")
    ]
    words = []
    for name in config:
        close = difflib.get_close_matches(name, known, n=1)
        words.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
    return f"The container scheduler does not know {', '.join(words)}; it is ignored"
