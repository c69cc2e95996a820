"""What the scheduler asks of whatever runs containers, and what goes wrong then.

All of it blocks: it is called in the scheduler's threads, by several at a time.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from xqute.errors import SchedulerError

from .options import Pull
from .parse import Container, Ended, Stage
from .spec import Spec

__all__ = [
    "WORDS_LENGTH",
    "Client",
    "EngineAwayError",
    "Traits",
    "Wanted",
    "as_wanted",
    "run_program",
    "signal_container",
]

#: How much of what a container has said is told, in characters.
WORDS_LENGTH = 4096
#: How long a container may be said to run whose engine knows better, and refuses to signal it.
_ENDING_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5


class EngineAwayError(SchedulerError):
    """Nobody answers. What was asked for may have been done all the same."""


class Traits(NamedTuple):
    """What there is to know of an engine.

    Attributes:
        name: What it is called where it is talked of.
        is_podman: Whether it is Podman, whatever it is called.
        is_rootless: Whether root in a container is an ordinary user of the host.
        remaps_users: Whether the engine gives containers a user namespace of their own.
        is_prompt: Whether it tells at once that a container has ended.
        is_local: Whether it runs on this machine.
        removal_batch: How many containers are best removed by one call.
    """

    name: str
    is_podman: bool = False
    is_rootless: bool = False
    remaps_users: bool = False
    is_prompt: bool = True
    is_local: bool = True
    removal_batch: int = 1


class Wanted(NamedTuple):
    """A container that is asked about: its key, and what it was labelled with."""

    key: str
    metadir: str
    tag: str


def as_wanted(container: Container) -> Wanted:
    """Give what a container is asked about with."""
    return Wanted(container.key, container.metadir, container.tag)


class Client(Protocol):
    """Docker, Podman or Apptainer, by whatever way it is reached."""

    @property
    def traits(self) -> Traits:
        """What there is to know of it."""

    def ensure_image(self, image: str, pull: Pull) -> str:
        """See that an image is there, and give the name to run it by.

        Raises:
            SchedulerError: If it is not to be had, with the engine's words.
        """

    def start(self, spec: Spec) -> str:
        """Make and start a container, and give its id.

        One of that name that is there is taken for it: it is started if it never was, and else left
        as it is.

        Raises:
            SubmitError: If it does not run; nothing is left of it.
            EngineAwayError: If nobody answers; it may run.
        """

    def look(self, wanted: Collection[Wanted] = ()) -> list[Container]:
        """Give the containers of the workdir, whoever made them.

        Args:
            wanted: Those whose exit code is wanted, too.

        Raises:
            SchedulerError: If nobody answers.
        """

    def find(self, wanted: Wanted) -> Container | None:
        """Give one container, with its exit code; None: there is none.

        Raises:
            SchedulerError: If nobody answers.
        """

    def wake(self, container: Container) -> None:
        """Start a container that was made and never started; one that has been is left alone.

        Raises:
            SchedulerError: If it does not run; nothing is left of it.
        """

    def signal(self, wanted: Wanted, *, force: bool) -> None:
        """Send TERM, or KILL, to a container; one that was never started is removed.

        One that is not there, or has ended, is no error.

        Raises:
            SchedulerError: If that cannot be done.
        """

    def remove(self, *wanted: Wanted) -> None:
        """Remove containers, also running ones; one that is gone is no error.

        Raises:
            SchedulerError: If one cannot be removed; the others may be.
        """

    def read_words(self, wanted: Wanted) -> str:
        """Give the last words of a container's own processes, the job's not among them."""

    def listen(self, since_s: float) -> Iterator[Ended | None]:
        """Tell of each end, from `since_s` (seconds since the epoch) on; first None: it listens.

        Ends when the engine goes away, or at `close`.

        Raises:
            SchedulerError: If nobody answers.
        """

    def close(self) -> None:
        """End `listen`, and give back what is held. Containers run on."""


def signal_container(client: Client, wanted: Wanted, send: Callable[[], str]) -> None:
    """Have a signal sent; what a refusal means, the container's state tells, not its words.

    An engine refuses what has ended. If all it says of that is that it runs, it was not told of
    the end yet (Podman's monitor tells it, in a moment): that is waited for.

    Args:
        client: The engine.
        wanted: The container.
        send: Sends the signal; gives the words of a refusal, empty if there was none.

    Raises:
        SchedulerError: If it is refused, again and again, and the container runs.
    """
    until_s = time.monotonic() + _ENDING_S
    pause_s = _FIRST_PAUSE_S
    while words := send():
        found = client.find(wanted)
        if found is None or found.stage is Stage.ENDED:
            return
        if found.stage is Stage.CREATED:
            client.remove(wanted)
            return
        if time.monotonic() > until_s:
            raise SchedulerError(f"{wanted.key} cannot be signalled: {words}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def run_program(
    argv: Sequence[str],
    timeout_s: float = 120.0,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit code; a signal to our group does not reach it.

    Raises:
        SchedulerError: If it cannot be started.
        EngineAwayError: If it has not ended in time; it is killed.
    """
    try:
        return subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            start_new_session=True,
            check=False,
            env=env,
        )
    except OSError as exc:
        raise SchedulerError(f"{argv[0]} cannot be started: {exc}") from exc
    except subprocess.TimeoutExpired as exc:
        said = " ".join(argv[:2])
        raise EngineAwayError(f"{said} has not answered within {timeout_s:g} s") from exc
