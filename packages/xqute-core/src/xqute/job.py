"""A job: one command, its files and its state."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from . import _clouds, _files, _protocol
from ._checks import check_index
from ._clouds import soon
from ._clouds.staging import upload_folder
from .defaults import RC_UNKNOWN, JobOutcome, JobStatus
from .errors import InvalidJobError
from .path import SpecLocalPath, SpecPath

if TYPE_CHECKING:
    from typing import Protocol

    from .utils import CommandType

    class Driver(Protocol):
        """What a job knows of the run that drives it."""

        def status_is_set(self, job: Job, status: JobStatus) -> bool:
            """Be asked whether a status that somebody else sets is to be taken over."""

        async def wait(self, job: Job) -> None:
            """Return when the job has ended for good."""


__all__ = ["Job", "as_workdir"]

T = TypeVar("T")

_ENDED = (JobStatus.FINISHED, JobStatus.FAILED)
#: An exit code as the wrapper writes it, and nothing else that `int` might make a number of.
_RC = r"0|-?[1-9][0-9]{0,9}"
#: What each attempt writes anew, in the job's folder.
_ATTEMPT_FILES = frozenset({"job.stdout", "job.stderr", "job.status", "job.rc", "job.jid"})
#: Between these and the end, the wrapper alone knows where a job is.
_OUT_OF_SIGHT = (JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.KILLING)


class _Rare(Generic[T]):
    """An attribute that few jobs have: kept in a dict that is made when it is set.

    Slots cost their 8 bytes, and a visit by the garbage collector, in every one of a million jobs.
    """

    __slots__ = ("_default", "_name")

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, owner: type[Job], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, job: None, owner: type[Job]) -> Self: ...
    @overload
    def __get__(self, job: Job, owner: type[Job]) -> T: ...
    def __get__(self, job: Job | None, owner: type[Job]) -> T | Self:
        if job is None:
            return self
        value: T = self._default if job._rare is None else job._rare.get(self._name, self._default)
        return value

    def __set__(self, job: Job, value: T) -> None:
        if job._rare is not None:
            job._rare[self._name] = value
        elif value != self._default:
            job._rare = {self._name: value}


class Job:
    """One command, with its folder ``<workdir>/<index>`` and where it is in its life.

    While a run drives the job, the run alone knows its state; before and after, what is asked for
    is read from the files. Do not make jobs by the hundred thousand with data hung onto them: an
    instance is slots only, and about 1 KB with its command.

    Args:
        index: Its number in the run, from 0.
        cmd: The command: one string, split like a shell does, or its words (each through `str`).
            May be empty until the job is fed.
        workdir: The run's folder. A local one gets the job's folder at once.
        error_retry: Whether a failure is tried again; None: as the run says.
        num_retries: How often at the most; None: as the run says.
        envs: Environment variables for the command (values through `str`).

    Attributes:
        index: See above.
        prev_status: The status before `status`.
        trial_count: The number of the current attempt, from 0.
        name: A name for people; None: none.
        timeout: Seconds after the start until it is ended; None: the scheduler's, 0: no limit.
        resources: Portable resources of this job alone; None: as the scheduler says.
        scheduler_opts: Native options of this job alone.
        cwd: Where the command runs; None: as the scheduler says.
        inputs: Files that a backend without a shared file system brings to the job.
        outputs: Files that it brings back.
        outcome: How the job ended; None until then.
        cause: Why, for programs (a `JobCause`); None if there is nothing to say.
        reason: Why, in words, the backend's own included.
        submitted_at: Seconds since the epoch; None: not yet. Likewise `started_at`, `ended_at`.
        adopted: Whether an earlier run started (and perhaps ended) it.
    """

    __slots__: tuple[str, ...] = (
        "_cmd",
        "_driver",
        "_envs",
        "_is_fresh",
        "_jid",
        "_metadir",
        "_rare",
        "_rc",
        "_status",
        "_workdir",
        "ended_at",
        "index",
        "outcome",
        "prev_status",
        "started_at",
        "submitted_at",
        "trial_count",
    )

    error_retry = _Rare[bool | None](None)
    num_retries = _Rare[int | None](None)
    #: Attempts that failed by the job's own doing, and resubmissions that were the backend's.
    failures = _Rare[int](0)
    restarts = _Rare[int](0)
    #: Attempts of this run whose submission was not answered, and that were never begun.
    unmade = _Rare[int](0)
    name = _Rare[str | None](None)
    timeout = _Rare[float | None](None)
    resources = _Rare[Any](None)
    scheduler_opts = _Rare[Mapping[str, Any] | None](None)
    cwd = _Rare[str | os.PathLike[str] | None](None)
    inputs = _Rare[Sequence[str | os.PathLike[str]]](())
    outputs = _Rare[Sequence[str | os.PathLike[str]]](())
    cause = _Rare[str | None](None)
    #: Why the attempt before the current one ended.
    last_cause = _Rare[str | None](None)
    #: The graphics processors that the current attempt has, where the scheduler shares them out.
    gpus = _Rare[tuple[str, ...]](())
    reason = _Rare[str]("")
    adopted = _Rare[bool](False)
    #: The run whose claims and keys the current attempt has; None: the one that drives the job.
    run_id = _Rare[str | None](None)
    #: The folder of this machine that stands for the workdir until the job's files are uploaded.
    staging = _Rare[str | None](None)
    #: The last status that `Scheduler.polling_jobs` has called hooks for.
    told_status = _Rare[JobStatus | None](None)

    def __init__(
        self,
        index: int,
        cmd: CommandType,
        workdir: str | os.PathLike[str],
        error_retry: bool | None = None,
        num_retries: int | None = None,
        envs: Mapping[str, object] | None = None,
    ) -> None:
        self._rare: dict[str, Any] | None = None
        self.index = check_index(index)
        self._cmd = _as_words(cmd)
        self._envs: dict[str, str] | None = _as_envs(envs) if envs else None
        self._workdir = as_workdir(workdir)
        self._metadir: SpecPath | None = None
        self._jid: int | str | None = None
        self._status = JobStatus.INIT
        self._rc: int | None = None
        self._driver: Driver | None = None
        self.prev_status = JobStatus.INIT
        self.trial_count = 0
        self.outcome: JobOutcome | None = None
        self.submitted_at: float | None = None
        self.started_at: float | None = None
        self.ended_at: float | None = None
        if error_retry is not None:
            self.error_retry = error_retry  # a descriptor of the class
        if num_retries is not None:
            self.num_retries = num_retries  # likewise
        #: Whether the folder was made by us, and no attempt has begun.
        self._is_fresh = self._make_folder()

    def _make_folder(self) -> bool:
        """Make the job's folder, if it is on this machine; False: it was not made just now."""
        return not self.is_far and _files.make_dir(self.local_dir)

    @property
    def is_far(self) -> bool:
        """Whether each look at a file of the job is a request over the network."""
        return not isinstance(self._workdir, SpecLocalPath) and self.staging is None

    def stage(self, staging: str) -> None:
        """Work in a folder of this machine; whoever drives the job uploads its files at the end.

        Raises:
            OSError: If the job's folder there cannot be made.
        """
        self.staging = staging
        self._is_fresh = self._make_folder()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}-{self.index}({self.jid}): ({self.cmd})>"

    @property
    def cmd(self) -> tuple[str, ...]:
        """The command's words. Assign a string or words; empty is an error once the job is fed."""
        return self._cmd

    @cmd.setter
    def cmd(self, cmd: CommandType) -> None:
        self._cmd = _as_words(cmd)

    @property
    def envs(self) -> dict[str, str]:
        """Environment variables for the command; to be changed at will until it is submitted."""
        if self._envs is None:
            self._envs = {}
        return self._envs

    @envs.setter
    def envs(self, envs: Mapping[str, object] | None) -> None:
        self._envs = _as_envs(envs) if envs else None

    @property
    def driver(self) -> Driver | None:
        """The run that drives the job; None before it is fed and after it has ended."""
        return self._driver

    @driver.setter
    def driver(self, driver: Driver | None) -> None:
        self._driver = driver

    async def wait(self) -> JobOutcome | None:
        """Return the outcome when the job has ended for good, its hooks included.

        Raises:
            RuntimeError: If no run drives the job.
        """
        if self._driver is not None:
            await self._driver.wait(self)
        elif not self.has_ended:
            raise RuntimeError(f"{self!r} was not fed to an Xqute: there is nothing to wait for")
        return self.outcome

    @property
    def has_envs(self) -> bool:
        """Whether there are environment variables, without making a dict to say so."""
        return bool(self._envs)

    @property
    def has_ended(self) -> bool:
        """Whether `status` is FINISHED or FAILED."""
        return self.status in _ENDED

    @property
    def status(self) -> JobStatus:
        """Where the job is.

        Setting it takes the job out of the hands of the run that drives it: the status sticks, and
        a terminal one ends the watching.
        """
        if self._driver is None and self._status in _OUT_OF_SIGHT:
            self._read_status()
        return self._status

    @status.setter
    def status(self, status: int) -> None:
        status = JobStatus(status)
        if self._driver is None or self._driver.status_is_set(self, status):
            self.enter(status)

    @property
    def current_status(self) -> JobStatus:
        """The status as whoever drives the job knows it, without a look at the files."""
        return self._status

    def enter(self, status: JobStatus) -> None:
        """Change the status, telling nobody. For whoever drives the job; others assign `status`."""
        if status is not self._status:
            self.prev_status = self._status
            self._status = status

    def _read_status(self) -> None:
        """Take over what the wrapper has written, unless that would be a step back."""
        text = self.read_file("job.status")
        if text is None or text.strip() not in {"4", "6", "7"}:
            return
        told = JobStatus(int(text))
        if self._status is JobStatus.KILLING and told in _ENDED:
            told = JobStatus.FINISHED
        if told > self._status:
            self.enter(told)

    @property
    def rc(self) -> int:
        """The exit code, 128+n for a death by signal n; -1 unknown, -2 not submitted, -3 lost."""
        if self._rc is not None:
            return self._rc
        text = self.read_file("job.rc")
        if text is None and self.staging is not None and self._driver is None:
            # It may have been uploaded.
            with suppress(OSError):
                text = _files.read_text(f"{self.kept_dir}/job.rc")
        text = (text or "").strip()
        return int(text) if re.fullmatch(_RC, text) else RC_UNKNOWN

    @rc.setter
    def rc(self, rc: int | None) -> None:
        self._rc = rc

    @property
    def jid(self) -> int | str | None:
        """The backend's own id of the job; None: none yet. Setting it writes the jid file."""
        if self._jid is None and self._driver is None:
            text = self.read_file("job.jid")
            return text.strip() or None if text else None
        return self._jid

    @jid.setter
    def jid(self, jid: int | str | None) -> None:
        self._jid = jid
        self._is_fresh = False
        self.note_file("job.jid", "" if jid is None else str(jid))

    # --- files ---------------------------------------------------------------------------------

    @property
    def workdir(self) -> SpecPath:
        """The folder of the run."""
        return self._workdir

    @property
    def metadir(self) -> SpecPath:
        """The folder of the job, ``<workdir>/<index>``."""
        if self._metadir is None:
            self._metadir = self._workdir / str(self.index)
        return self._metadir

    @property
    def local_dir(self) -> str:
        """The folder of the job as text (on this machine, or the URI of a cloud folder)."""
        if self._rare is not None and self.staging is not None:
            return f"{self.staging}/{self.index}"
        return self.kept_dir

    @property
    def kept_dir(self) -> str:
        """The same, where its files stay: a staging folder may be gone when the job has ended."""
        return f"{self._workdir}/{self.index}"

    @property
    def stdout_file(self) -> SpecPath:
        """Where the command's standard output goes."""
        return self.metadir / "job.stdout"

    @property
    def stderr_file(self) -> SpecPath:
        """Where the command's standard error goes, and why a submission failed."""
        return self.metadir / "job.stderr"

    @property
    def status_file(self) -> SpecPath:
        """Where the wrapper writes the status."""
        return self.metadir / "job.status"

    @property
    def rc_file(self) -> SpecPath:
        """Where the wrapper writes the exit code."""
        return self.metadir / "job.rc"

    @property
    def jid_file(self) -> SpecPath:
        """Where the native job id is written."""
        return self.metadir / "job.jid"

    @property
    def retry_dir(self) -> SpecPath:
        """The folder of the earlier attempts' files, one folder an attempt."""
        return self.metadir / "job.retry"

    def read_file(self, name: str) -> str | None:
        """Give the text of a small file of the job's folder; None if it cannot be read."""
        try:
            return _files.read_text(f"{self.local_dir}/{name}")
        except OSError:
            return None

    def write_file(self, name: str, text: str) -> None:
        """Replace a small file of the job's folder.

        Raises:
            OSError: If it cannot be written.
        """
        path = f"{self.local_dir}/{name}"
        try:
            _files.write_text(path, text)
        except FileNotFoundError:
            _files.make_dir(self.local_dir)
            _files.write_text(path, text)

    def note_file(self, name: str, text: str) -> None:
        """Replace a small file of the job's folder; one in a cloud soon, without waiting for it.

        Raises:
            OSError: If a local one cannot be written.
        """
        if not self.is_far:
            self.write_file(name, text)
        else:
            _files.write_soon(f"{self.local_dir}/{name}", text)

    def upload(self) -> None:
        """Copy what is in the staging folder of the job to its folder in the cloud. Blocks.

        Raises:
            OSError: If something could not be; other things may have been.
        """
        if self.staging is not None:
            upload_folder(self.local_dir, self.kept_dir)

    def forget_attempt(self) -> None:
        """Forget the native id and the exit code: another attempt follows."""
        self._jid = None
        self._rc = None
        self._is_fresh = False

    def clean(self, retry: bool = False) -> None:
        """Remove what an attempt left in the job's folder, if there can be anything.

        Args:
            retry: Keep it, in ``job.retry/<trial_count>/``, and forget state and exit code.

        Raises:
            OSError: If a file can neither be moved nor removed.
        """
        if retry:
            self.put_aside(self.trial_count)
        elif self.is_far:
            _remove_far(self.local_dir)
        else:
            self._remove(self._list())
        self.forget_attempt()

    def put_aside(self, trial: int) -> None:
        """Move the files of the attempt of this number to ``job.retry/<trial>``.

        Raises:
            OSError: If one cannot be moved.
        """
        kept = f"{self.local_dir}/job.retry/{trial}"
        if self.is_far:
            _move_far(self.local_dir, kept)
            return
        names = self._list()
        if os.path.isdir(kept):
            import shutil

            shutil.rmtree(kept)
        _files.make_dir(kept)
        for name in names:
            if _is_kept(name):
                with suppress(FileNotFoundError):
                    os.rename(f"{self.local_dir}/{name}", f"{kept}/{name}")

    def _list(self) -> list[str]:
        """Name what may be in the folder; it is made if somebody has removed it."""
        try:
            names = os.listdir(self.local_dir)
        except FileNotFoundError:
            self._make_folder()
            return []
        if not names or self._is_fresh:
            return names
        # The listing may be behind the times, so what counts is gone for by name.
        return [*{*names, *_ATTEMPT_FILES}]

    def _remove(self, names: list[str]) -> None:
        # Claims of attempts that have ended, too; the others still forbid a late start, and so do
        # those of attempts that the backend may start again. The ends go last: whoever is killed in
        # between leaves what the next one removes.
        kept = {name.split(".")[2] for name in names if name.startswith("job.restarts.")}
        ended = [
            name for name in names if name.startswith("job.end.") and name.split(".")[2] not in kept
        ]
        started = [f"job.start.{name.removeprefix('job.end.')}" for name in ended]
        for name in (*_ATTEMPT_FILES.intersection(names), *started, *ended):
            with suppress(FileNotFoundError):
                os.unlink(f"{self.local_dir}/{name}")


def as_workdir(path: str | os.PathLike[str]) -> SpecPath:
    """Give a folder as a `SpecPath` that means the same wherever this process, or a job, goes."""
    if not isinstance(path, SpecPath):
        return SpecPath(_files.absolute(path))
    text = str(path)
    if _clouds.is_far(text):
        # A slash at its end says nothing; in a bucket `run//0` would not be `run/0`.
        return path / "" if text.endswith("/") else path
    if text.startswith("/"):
        return path
    return SpecPath(_files.absolute(path), path.mounted if path.is_mounted() else None)


def _is_kept(name: str) -> bool:
    """Whether a file is put aside with its attempt."""
    return name in _ATTEMPT_FILES or name.startswith("job.wrapped.")


def _move_far(folder: str, kept: str) -> None:
    """Put the files of an attempt aside in a cloud."""
    soon.settle(folder)
    names = [name for name in _clouds.names(folder) if _is_kept(name)]
    for name in names:
        _clouds.copy(f"{folder}/{name}", f"{kept}/{name}")
    _clouds.delete([f"{folder}/{name}" for name in names])


def _remove_far(folder: str) -> None:
    """Remove the files of an attempt in a cloud, and the claims of those that have ended.

    The others still forbid a late start.
    """
    soon.settle(folder)
    names = set(_clouds.names(folder))
    ended, _ = _protocol.sort_claims(names)
    _clouds.delete([f"{folder}/{name}" for name in (names & _ATTEMPT_FILES) | ended])


def _as_words(cmd: Any) -> tuple[str, ...]:
    if isinstance(cmd, str):
        import shlex

        try:
            return tuple(shlex.split(cmd))
        except ValueError as exc:
            raise InvalidJobError(f"The command {cmd!r} cannot be split into words: {exc}") from exc
    if isinstance(cmd, list | tuple) and all(type(word) is str for word in cmd):
        return tuple(cmd)
    if isinstance(cmd, bytes | Mapping) or not isinstance(cmd, Iterable):
        raise InvalidJobError(f"A command is a string or a sequence of words: {cmd!r}")
    return tuple(os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in cmd)


def _as_envs(envs: Mapping[str, object]) -> dict[str, str]:
    return {
        str(name): os.fsdecode(value) if isinstance(value, bytes) else str(value)
        for name, value in envs.items()
    }
