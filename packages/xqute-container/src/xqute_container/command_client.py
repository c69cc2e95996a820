"""Docker, Podman, or what is used like them, through its program."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from xqute import logger
from xqute.defaults import JOBCMD_WRAPPER_LANG
from xqute.errors import SchedulerError, SubmitError

from .client import (
    WORDS_LENGTH,
    EngineAwayError,
    Traits,
    Wanted,
    as_wanted,
    run_program,
    signal_container,
)
from .options import Pull, Runtime
from .parse import (
    Container,
    Ended,
    Stage,
    explain_refusal,
    is_name_clash,
    parse_ended,
    parse_inspected,
    parse_loaded,
)
from .spec import Spec, build_run_argv

__all__ = ["CommandClient"]

#: What programs say when their engine does not answer, and when it has no such container or image.
_AWAY = (
    r"cannot connect to the docker|failed to connect to the docker|error during connect"
    r"|unable to connect to podman"
)
_NO_CONTAINER = r"no such (container|object)|no container with"
_NO_IMAGE = r"no such image|not known|not found|no such object"
_PULL_TIMEOUT_S = 3600.0
#: How many containers one call of Podman's removes, in little more time than it takes for one.
_REMOVAL_BATCH = 16
#: Runs a program until somebody closes its standard input, if only by being killed.
_UNTIL_LEFT = '"$@" </dev/null & exec >&-; read -r _; kill "$!" 2>/dev/null'


class CommandClient:
    """Runs a program for each thing that is asked for.

    Args:
        program: The program, with the options that go before any command.
        runtime: Whether it is Docker or Podman.
        labels: What all containers of this run's folder have.
        bin_args: The user's own options for each container.

    Raises:
        SchedulerError: If it does not work, with its words.
    """

    def __init__(
        self, program: list[str], runtime: Runtime, labels: dict[str, str], bin_args: Sequence[str]
    ) -> None:
        self._program = program
        self._binary = program[0]
        self._runtime = runtime
        self._labels = labels
        self._bin_args = bin_args
        self._events: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._is_closed = False
        self._info: dict[str, Any] = {}
        if runtime is Runtime.PODMAN and len(program) == 1:
            return  # it takes long to tell about itself, and there is no engine that may be away
        self._info = json.loads(self._ask("info", "--format", "{{json .}}"))
        errors = self._info.get("ServerErrors")
        if errors:
            raise EngineAwayError(
                f"{self._binary}: {'; '.join(errors)} (is the engine started? may you use it?)"
            )

    @cached_property
    def traits(self) -> Traits:
        """What there is to know of the engine."""
        if not self._info:
            return self._podman(is_rootless=os.getuid() != 0)
        if "host" in self._info:
            return self._podman(is_rootless=self._info["host"]["security"]["rootless"])
        security = self._info.get("SecurityOptions") or ()
        return Traits(
            "Docker",
            is_rootless=any(option.startswith("name=rootless") for option in security),
            remaps_users=any(option.startswith("name=userns") for option in security),
        )

    def _podman(self, *, is_rootless: bool) -> Traits:
        """Say of Podman that its events may be a quarter of a second late, and its calls slow."""
        return Traits(
            "Podman",
            is_podman=True,
            is_rootless=is_rootless,
            is_prompt=False,
            removal_batch=_REMOVAL_BATCH,
        )

    def _run(self, *words: str, timeout_s: float = 120.0) -> subprocess.CompletedProcess[str]:
        done = run_program([*self._program, *words], timeout_s)
        if done.returncode < 0:
            raise EngineAwayError(
                f"{self._binary} {words[0]} was ended by signal {-done.returncode}"
            )
        if done.returncode != 0 and re.search(_AWAY, done.stderr, re.IGNORECASE):
            raise EngineAwayError(
                f"{self._binary}: {done.stderr.strip()} (is the engine started? may you use it?)"
            )
        return done

    def _ask(self, *words: str) -> str:
        done = self._run(*words)
        if done.returncode != 0:
            raise SchedulerError(f"{self._binary} {words[0]}: {done.stderr.strip()}")
        return done.stdout

    # --- images --------------------------------------------------------------------------------

    def ensure_image(self, image: str, pull: Pull) -> str:
        """See that an image is there; an archive of one is loaded."""
        if os.path.isfile(image):
            return self._load(image)
        if pull is not Pull.ALWAYS:
            done = self._run("image", "inspect", "--format", "{{.Id}}", image)
            if done.returncode == 0:
                return image
            if not re.search(_NO_IMAGE, done.stderr, re.IGNORECASE):
                words = done.stderr.strip()
                raise SchedulerError(f"{self._binary} cannot look for the image {image}: {words}")
            if pull is Pull.NEVER:
                raise SchedulerError(
                    f"{self.traits.name} has no image {image}, and is not to pull it "
                    "(pull='never'): pull or load it first"
                )
        logger.info("%s pulls the image %s", self.traits.name, image)
        done = self._run("pull", "--quiet", image, timeout_s=_PULL_TIMEOUT_S)
        if done.returncode != 0:
            raise SchedulerError(
                f"{self.traits.name} cannot pull the image {image}: {done.stderr.strip()} (check "
                "its name, and whether its registry wants a login)"
            )
        logger.info("%s has pulled the image %s", self.traits.name, image)
        return image

    def _load(self, path: str) -> str:
        logger.info("%s loads the image %s", self.traits.name, path)
        done = self._run("load", "--input", path, timeout_s=_PULL_TIMEOUT_S)
        if done.returncode != 0:
            raise SchedulerError(f"The image {path} cannot be loaded: {done.stderr.strip()}")
        return parse_loaded(done.stdout, path)

    # --- containers ----------------------------------------------------------------------------

    def start(self, spec: Spec) -> str:
        """Make and start a container."""
        argv = build_run_argv(self._binary, self._runtime, spec, self._bin_args, ["--detach"])
        done = self._run(*argv[1:])
        if done.returncode == 0:
            return done.stdout.split()[-1]
        words = done.stderr.strip()
        found = next(iter(self._inspect(spec.key)), None)
        if found is not None and found.key == spec.key:
            # It is there already, or it runs and something went wrong after that.
            if is_name_clash(words) or found.stage is not Stage.CREATED:
                self.wake(found)
                return found.id
            self.remove(as_wanted(found))
        raise SubmitError(explain_refusal(words, spec, self.traits.name))

    def wake(self, container: Container) -> None:
        """Start a container that never was."""
        if container.stage is not Stage.CREATED:
            return
        done = self._run("start", container.id)
        if done.returncode != 0:
            self.remove(as_wanted(container))
            raise SubmitError(f"{container.key} cannot be started: {done.stderr.strip()}")

    def look(self, wanted: Collection[Wanted] = ()) -> list[Container]:
        """Give all containers of the workdir."""
        filters = [_build_filter(name, value) for name, value in self._labels.items()]
        ids = self._ask("ps", "--all", "--quiet", "--no-trunc", *filters).split()
        said = self._read(*ids) if ids else []
        return [parse_inspected(one) for one in said if self._is_of_workdir(one)]

    def _is_of_workdir(self, said: Mapping[str, Any]) -> bool:
        labels: dict[str, str] = said["Config"]["Labels"]
        return self._labels.items() <= labels.items()

    def find(self, wanted: Wanted) -> Container | None:
        """Give one container, with its exit code."""
        found = self._inspect(wanted.key)
        return next((container for container in found if container.key == wanted.key), None)

    def _inspect(self, *names: str) -> list[Container]:
        return list(map(parse_inspected, self._read(*names)))

    def _read(self, *names: str) -> list[dict[str, Any]]:
        """Give what is said of those of the containers that are there.

        Raises:
            EngineAwayError: If it is not said of each whether it is there: Podman may give up at
                one that somebody removes.
        """
        done = self._run("container", "inspect", *names)
        found: list[dict[str, Any]] = json.loads(done.stdout.strip() or "[]")
        words = done.stderr.splitlines()
        missing = [line for line in words if re.search(_NO_CONTAINER, line, re.IGNORECASE)]
        if len(found) + len(missing) < len(names):
            raise EngineAwayError(f"{self._binary} inspect: {done.stderr.strip()}")
        return found

    def signal(self, wanted: Wanted, *, force: bool) -> None:
        """Send TERM, or KILL, to the first process of a container."""

        def send() -> str:
            done = self._run("kill", f"--signal={'KILL' if force else 'TERM'}", wanted.key)
            return "" if done.returncode == 0 else done.stderr.strip() or "no word"

        signal_container(self, wanted, send)

    def remove(self, *wanted: Wanted) -> None:
        """Remove containers and the anonymous volumes of their images."""
        now = ["--time=0"] if self.traits.is_podman else []  # or it would ask first, for 10 seconds
        keys = [one.key for one in wanted]
        done = self._run("rm", "--force", "--volumes", *now, *keys)
        left = self._inspect(*keys) if done.returncode != 0 else []
        if left:
            names = ", ".join(container.key for container in left)
            raise SchedulerError(f"{names} cannot be removed: {done.stderr.strip()}")

    def read_words(self, wanted: Wanted) -> str:
        """Give the last that the engine has kept of a container's output."""
        try:
            # Asked for the last lines alone, Podman may miss words that were just written.
            done = self._run("logs", wanted.key)
        except SchedulerError:
            return ""
        said = f"{done.stdout}{done.stderr}".strip() if done.returncode == 0 else ""
        return said[-WORDS_LENGTH:]

    # --- news ----------------------------------------------------------------------------------

    def listen(self, since_s: float) -> Iterator[Ended | None]:
        """Tell of each end."""
        format_ = "json" if self.traits.is_podman else "{{json .}}"
        event = "died" if self.traits.is_podman else "die"
        argv = [*self._program, "events", f"--since={int(since_s)}", f"--format={format_}"]
        argv += ["--filter=type=container", f"--filter=event={event}"]
        with self._lock:
            if self._is_closed:
                return
            try:
                events = self._events = subprocess.Popen(
                    [JOBCMD_WRAPPER_LANG, "-p", "-c", _UNTIL_LEFT, "events", *argv],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,
                )
            except OSError as exc:
                raise SchedulerError(f"{self._binary} cannot be started: {exc}") from exc
        yield None
        with events:
            for line in events.stdout or ():
                try:
                    ended = parse_ended(json.loads(line))
                except ValueError as exc:  # it was killed within a line
                    raise SchedulerError(f"{self._binary} events: {line!r}") from exc
                if ended is not None:
                    yield ended

    def close(self) -> None:
        """End `listen`."""
        with self._lock:
            self._is_closed = True
            if self._events is not None and self._events.stdin is not None:
                with suppress(OSError, ValueError):  # it has ended
                    self._events.stdin.close()


def _build_filter(name: str, value: str) -> str:
    """Give what limits a list to a label; some versions of Podman take it apart at commas."""
    is_whole = not {",", '"'} & set(value)
    return f"--filter=label={name}={value}" if is_whole else f"--filter=label={name}"
