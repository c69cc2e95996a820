"""Apptainer and Singularity: no engine, but a process of this machine for each container."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Final, NamedTuple

from xqute import logger
from xqute.defaults import JOBCMD_WRAPPER_LANG, SIGNAL_BASE
from xqute.errors import SchedulerError, SubmitError

from .client import WORDS_LENGTH, Traits, Wanted, run_program
from .options import Pull
from .parse import Container, Ended, Stage
from .spec import LABEL_METADIR, LABEL_TAG, Spec, build_exec_argv

__all__ = ["ApptainerClient"]

_NAME: Final = "xqute-apptainer"
#: The process that stands for a container: its command line has the key for as long as it lives,
#: it outlives its driver, and where the job has not told its end it leaves the exit code and the
#: program's own words. $1 is the key, $2 the workdir, $3 the job's folder, $4 its claims' tag.
_SUPERVISOR: Final = """\
trap : TERM INT HUP QUIT
told=$3/job.end.$4 left=$3/job.container.$4
shift 4
cd /
words=$(exec "$@" </dev/null 2>&1)
rc=$?
[[ -e $told ]] || printf '%s\\n' "$rc" "$words" >"$left"
exit "$rc"
"""
#: Variables that the program itself needs; what else the host has could get into the container.
_KEPT: Final = frozenset({"HOME", "LANG", "PATH", "TMPDIR", "USER", "XDG_RUNTIME_DIR"})
_KEPT_PREFIXES: Final = ("APPTAINER_", "SINGULARITY_")
_INJECTING_PREFIXES: Final = ("APPTAINER_ENV", "SINGULARITY_ENV")
#: What images that are to be fetched or converted begin with.
_URI: Final = ("://", "docker-archive:", "oci-archive:", "docker-daemon:")
_BUILD_TIMEOUT_S: Final = 3600.0
#: Of a process that has ended meanwhile, and of somebody else's where /proc hides them (hidepid).
_NOT_SEEN: Final = (FileNotFoundError, ProcessLookupError, PermissionError)


class _Supervisor(NamedTuple):
    pid: int
    key: str
    workdir: str
    metadir: str
    tag: str


class ApptainerClient:
    """Starts processes, and finds them by the key on their command line.

    Args:
        binary: The program.
        bin_args: The user's own options for each container.
        workdir: The folder of the run.

    Raises:
        SchedulerError: If it does not work, with its words.
    """

    def __init__(self, binary: str, bin_args: Sequence[str], workdir: str) -> None:
        self._binary = binary
        self._workdir = workdir
        self._bin_args = bin_args
        self._lock = threading.Lock()
        #: The keys of those whose ends are told, by their pidfds, and the pids of these.
        self._watched: dict[int, tuple[int, str]] = {}
        #: Exit codes of those that were killed before they could leave one, by key.
        self._codes: dict[str, int] = {}
        #: Those that have ended, whoever has seen it first, until `listen` tells of them.
        self._ended: deque[Ended] = deque()
        self._epoll = select.epoll()
        self._is_closed = threading.Event()
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._waker, select.EPOLLIN)
        done = run_program([binary, "--version"], env=_clean_environment())
        if done.returncode != 0:
            raise SchedulerError(f"{binary} does not work: {done.stderr.strip()}")

    @cached_property
    def traits(self) -> Traits:
        """What there is to know of the program."""
        return Traits("Apptainer", is_prompt=False)

    # --- images --------------------------------------------------------------------------------

    def ensure_image(self, image: str, pull: Pull) -> str:
        """Give the file or folder of an image; any other is fetched into the user's cache."""
        if not any(word in image for word in _URI):
            path = os.path.abspath(os.path.expanduser(image))
            if not os.path.exists(path):
                raise SchedulerError(
                    f"There is no image {path}: give a .sif file, a folder, or a URI such as "
                    f"docker://{image}"
                )
            return path
        folder = _cache_dir()
        kept = f"{folder}/{hashlib.sha256(image.encode()).hexdigest()[:32]}.sif"
        if os.path.exists(kept) and pull is not Pull.ALWAYS:
            return kept
        if pull is Pull.NEVER:
            raise SchedulerError(
                f"The image {image} was never fetched, and is not to be (pull='never')"
            )
        logger.info("Apptainer fetches the image %s", image)
        os.makedirs(folder, exist_ok=True)
        partial = f"{kept}.{os.getpid()}"
        try:
            build = [self._binary, "build", "--force", partial, image]
            done = run_program(build, _BUILD_TIMEOUT_S, _clean_environment())
            if done.returncode != 0:
                words = done.stderr.strip()
                raise SchedulerError(f"Apptainer cannot fetch the image {image}: {words}")
            os.rename(partial, kept)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(partial)
        logger.info("Apptainer has fetched the image %s", image)
        return kept

    # --- containers ----------------------------------------------------------------------------

    def start(self, spec: Spec) -> str:
        """Start a process; one that has the key is taken for it."""
        there = _find_supervisors([spec.key])
        if there:
            return str(there[0].pid)
        argv = [JOBCMD_WRAPPER_LANG, "-p", "-c", _SUPERVISOR, _NAME, spec.key, self._workdir]
        argv += [spec.labels[LABEL_METADIR], spec.labels[LABEL_TAG]]
        argv += build_exec_argv(self._binary, spec, self._bin_args)
        null = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)]
        try:
            pid = os.posix_spawn(
                argv[0],
                argv,
                _clean_environment(),
                file_actions=null,
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
            )
        except OSError as exc:
            raise SubmitError(f"{argv[0]} cannot be started: {exc}", transient=True) from exc
        _await_name(pid)
        self._watch(pid, spec.key)
        return str(pid)

    def wake(self, container: Container) -> None:
        """Do nothing: what was made runs."""

    def look(self, wanted: Collection[Wanted] = ()) -> list[Container]:
        """Give those that run, and of the wanted ones those that have left an exit code."""
        self._reap()
        if self._ended:
            os.eventfd_write(self._waker, 1)
        found = {
            each.key: Container(str(each.pid), each.key, Stage.RUNNING, each.metadir, each.tag)
            for each in _find_supervisors(None)
            if each.workdir == self._workdir
        }
        for one in wanted:
            running = found.get(one.key)
            if running is not None:
                self._watch(int(running.id), one.key)
            elif (code := self._exit_code(one)) is not None:
                found[one.key] = Container(
                    "", one.key, Stage.ENDED, one.metadir, one.tag, exit_code=code
                )
        return list(found.values())

    def find(self, wanted: Wanted) -> Container | None:
        """Give one container, with its exit code."""
        return next((found for found in self.look([wanted]) if found.key == wanted.key), None)

    def _exit_code(self, wanted: Wanted) -> int | None:
        try:
            with open(_left_path(wanted.metadir, wanted.tag), "rb") as left:
                return int(left.readline())
        except (OSError, ValueError):
            return self._codes.get(wanted.key)

    def signal(self, wanted: Wanted, *, force: bool) -> None:
        """Send TERM to the process group, or KILL to all of the session but the supervisor.

        That one tells the exit code, and ends with what it has started.
        """
        for each in _find_supervisors([wanted.key]):
            if force:
                _kill_session(each.pid)
            else:
                with suppress(ProcessLookupError):
                    os.killpg(each.pid, signal.SIGTERM)

    def remove(self, *wanted: Wanted) -> None:
        """Remove the files that containers have left beside their jobs'."""
        for one in wanted:
            self._codes.pop(one.key, None)
            with suppress(FileNotFoundError):
                os.unlink(_left_path(one.metadir, one.tag))

    def read_words(self, wanted: Wanted) -> str:
        """Give the last of what the program itself has said."""
        try:
            with open(_left_path(wanted.metadir, wanted.tag), "rb") as left:
                left.readline()  # the exit code
                return left.read().decode("utf-8", "replace").strip()[-WORDS_LENGTH:]
        except OSError:
            return ""

    # --- news ----------------------------------------------------------------------------------

    def _watch(self, pid: int, key: str) -> None:
        """Have the end of a process told, whoever has started it."""
        with self._lock:
            if any(key == watched for _, watched in self._watched.values()):
                return
            try:
                pidfd = os.pidfd_open(pid)
            except (AttributeError, OSError) as exc:
                logger.debug("The end of process %d is not told: %s", pid, exc)
                return
            self._watched[pidfd] = pid, key
            self._epoll.register(pidfd, select.EPOLLIN)

    def _reap(self) -> None:
        """Note those that have ended since, and be done with them."""
        with self._lock:
            for pidfd, _ in self._epoll.poll(0):
                if pidfd == self._waker:
                    continue
                pid, key = self._watched.pop(pidfd)
                self._epoll.unregister(pidfd)
                os.close(pidfd)
                code = _reap(pid)
                if code is not None and code > SIGNAL_BASE:
                    self._codes[key] = code
                self._ended.append(Ended(key, str(pid), code))

    def listen(self, since_s: float) -> Iterator[Ended | None]:
        """Tell of each end."""
        yield None
        while not self._is_closed.is_set():
            select.select([self._epoll], [], [])
            with suppress(BlockingIOError):
                os.eventfd_read(self._waker)
            self._reap()
            while self._ended:
                yield self._ended.popleft()

    def close(self) -> None:
        """End `listen`; processes run on."""
        self._is_closed.set()
        os.eventfd_write(self._waker, 1)


def _await_name(pid: int) -> None:
    """Return when a child that was just spawned can be found by its command line, or has ended.

    Spawning it returns in the midst of its exec: for a moment it has none.
    """
    with suppress(ChildProcessError):
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read(1):
                    return
            time.sleep(0.0005)


def _reap(pid: int) -> int | None:
    """Give the exit code of a child that has ended, 128+n for signal n; None: it is not ours.

    If somebody has killed it alone, what it stands for ends with it.
    """
    try:
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is None:
            return None
        was_killed = ended.si_code != os.CLD_EXITED
        if was_killed:
            _kill_session(pid)  # its id is nobody else's until it is reaped
        os.waitpid(pid, 0)
    except ChildProcessError:
        return None
    return SIGNAL_BASE + ended.si_status if was_killed else ended.si_status


def _find_supervisors(keys: Collection[str] | None) -> list[_Supervisor]:
    """Give the processes that stand for containers: those with these keys, or all."""
    found = []
    marker = f"\0{_NAME}\0".encode()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read()
            _, found_marker, rest = line.partition(marker)
            if not found_marker or not line.startswith(JOBCMD_WRAPPER_LANG.encode()):
                continue
            # Its child looks the same until it is the program.
            is_leader = os.getsid(int(pid)) == int(pid)
        except _NOT_SEEN:
            continue
        if is_leader:
            key, workdir, metadir, tag, *_ = map(os.fsdecode, rest.split(b"\0"))
            if keys is None or key in keys:
                found.append(_Supervisor(int(pid), key, workdir, metadir, tag))
    return found


def _kill_session(leader: int) -> None:
    for pid in _find_session(leader):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _find_session(leader: int) -> list[int]:
    """Give the processes of a session without its leader."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b") ")[2].split()
        except _NOT_SEEN:
            continue
        if int(fields[3]) == leader != int(pid):
            found.append(int(pid))
    return found


def _left_path(metadir: str, tag: str) -> str:
    return f"{metadir}/job.container.{tag}"


def _cache_dir() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return f"{base}/xqute/images"


def _clean_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Give what the program needs of the environment: its own settings, not the job's."""
    return {
        name: value
        for name, value in environ.items()
        if name in _KEPT
        or (name.startswith(_KEPT_PREFIXES) and not name.startswith(_INJECTING_PREFIXES))
    }
