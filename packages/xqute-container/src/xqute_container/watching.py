"""What becomes of containers: their ends told at once, and nothing left of them afterwards."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Protocol, TypeVar

from xqute import logger
from xqute.defaults import JobCause
from xqute.errors import SchedulerError
from xqute.job import Job
from xqute.scheduler import BackendState, Phase

from .client import Client, Wanted, as_wanted
from .parse import Container, Ended, Stage, parse_setup_code

__all__ = ["Watching", "is_settled"]

T = TypeVar("T")

#: What the wrapper exits with if its attempt was taken, or it could write nothing.
_WRAPPER_CODES = (121, 122)
#: Pauses before the events of an engine are asked for again.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
#: How long what has told its end may take to be over, when the run is.
_CLOSE_WAIT_S = 2.0
#: How long removals that are under way may take then: a busy Podman needs seconds for one.
_REMOVAL_WAIT_S = 60.0
#: How long what is over may wait for more to be removed with it.
_REMOVAL_LINGER_S = 2.0

_PHASES = {Stage.CREATED: Phase.PENDING, Stage.RUNNING: Phase.RUNNING, Stage.ENDED: Phase.ENDED}


class Keys(Protocol):
    """What knows of jobs more than their containers tell: the scheduler."""

    def submission_key(self, job: Job) -> str:
        """Give the key of the current attempt of a job."""

    def claim_tag(self, job: Job) -> str:
        """Give what its claims are named after."""

    def explain(self, job: Job, words: str) -> str:
        """Say why its container did not run, from the engine's words."""


def is_settled(metadir: str, tag: str) -> bool:
    """Whether nothing would be lost with the container of an attempt.

    So it is if its end is recorded, it was revoked before it began, or its folder is gone: see the
    files of a job in docs/wrapper.md.
    """
    if os.path.exists(f"{metadir}/job.end.{tag}"):
        return True
    try:
        with open(f"{metadir}/job.start.{tag}", "rb") as claim:
            return claim.read(8) == b"revoked "
    except FileNotFoundError:
        return not os.path.isdir(metadir)


def _is_begun(metadir: str, tag: str) -> bool:
    """Whether there is a start claim of the attempt: there is none yet, or it was tidied up."""
    return os.path.exists(f"{metadir}/job.start.{tag}")


def _ran_out_of_memory(metadir: str) -> bool:
    """Whether something in a container that has ended was killed for want of memory."""
    try:
        return os.path.getsize(f"{metadir}/job.oom") > 0
    except FileNotFoundError:
        return False


def _was_told(metadir: str, tag: str) -> bool:
    """Whether the job itself has told its end: one that was given up may run on."""
    try:
        with open(f"{metadir}/job.end.{tag}", "rb") as claim:
            return claim.read(1) != b"-"
    except FileNotFoundError:
        return False


class Watching:
    """Follows the containers of jobs until they are removed.

    Args:
        client: The engine.
        keys: The scheduler.
        call: Runs a function that blocks, elsewhere.
        remove: Whether containers are removed at all.
    """

    def __init__(
        self,
        client: Client,
        keys: Keys,
        call: Callable[..., Awaitable[Any]],
        *,
        remove: Callable[[], bool],
    ) -> None:
        self.report: Callable[[Job, BackendState], None] | None = None
        self.client = client
        self._keys = keys
        self._call = call
        self._remove = remove
        #: The attempts whose containers may be there, by their keys.
        self._followed: dict[str, tuple[Wanted, Job]] = {}
        #: Those that are over, and soon removed.
        self._over: list[Wanted] = []
        self._remover: asyncio.TimerHandle | None = None
        #: The keys of those that were sent KILL: how they end is known.
        self._killed: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = threading.Event()
        self._listener: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def add(self, jobs: Iterable[Job]) -> None:
        """Follow these jobs: their current attempts."""
        for job in jobs:
            wanted = self.wanted(job)
            self._followed[wanted.key] = wanted, job

    def drop(self, job: Job) -> None:
        """Follow the current attempt of a job no more: there is no container."""
        self._followed.pop(self._keys.submission_key(job), None)

    def note_killed(self, jobs: Iterable[Job]) -> None:
        """Know that nothing is lost with these containers: they were sent KILL."""
        self._killed.update(map(self._keys.submission_key, jobs))

    def wanted(self, job: Job) -> Wanted:
        """Give what the current attempt of a job is asked for with."""
        return Wanted(self._keys.submission_key(job), job.local_dir, self._keys.claim_tag(job))

    # --- what is asked -------------------------------------------------------------------------

    async def ask(self, jobs: Iterable[Job]) -> dict[Job, BackendState]:
        """Give the state of each job, and remove what is over.

        Raises:
            SchedulerError: If nobody answers.
        """
        wanted = {self.wanted(job): job for job in jobs}
        if not wanted:
            return {}
        found: dict[Wanted, BackendState] = await self._call(self._look, wanted)
        for one, state in found.items():
            if state.phase is Phase.ENDED:
                self._clear(one)
        return {job: found[one] for one, job in wanted.items()}

    def _look(self, wanted: Mapping[Wanted, Job]) -> dict[Wanted, BackendState]:
        if len(wanted) == 1:
            [one] = wanted
            found = self.client.find(one)
            return {one: self._judge(wanted[one], one, found)}
        containers = {container.key: container for container in self.client.look(wanted)}
        return {one: self._judge(job, one, containers.get(one.key)) for one, job in wanted.items()}

    def _judge(self, job: Job, wanted: Wanted, container: Container | None) -> BackendState:
        """Say what a container's state means for its job."""
        if container is None:
            return BackendState(Phase.GONE)
        phase, code = _PHASES[container.stage], container.exit_code
        if phase is not Phase.ENDED:
            return BackendState(phase)
        if code != 0 and (container.out_of_memory or _ran_out_of_memory(wanted.metadir)):
            # Something in it was killed; a job that succeeded all the same has succeeded.
            why = "it used more memory than its container may"
            return BackendState(phase, code, JobCause.OUT_OF_MEMORY, why)
        if _is_begun(wanted.metadir, wanted.tag) or code in _WRAPPER_CODES:
            return BackendState(phase, code, reason=container.words)
        words = container.words or self.client.read_words(wanted)
        code = parse_setup_code(words, code)
        return BackendState(phase, code, JobCause.SETUP, self._keys.explain(job, words))

    # --- what is heard -------------------------------------------------------------------------

    def listen(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to hear of ends from the engine itself."""
        self._loop = loop
        self._listener = threading.Thread(target=self._listen, name="xqute-containers", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        """Hear of ends until `close`; after a pause in the stream, ask what was missed."""
        since_s = time.time() - 1
        pause_s = _FIRST_PAUSE_S
        is_first = True
        while not self._is_closed.is_set():
            try:
                for ended in self.client.listen(since_s):
                    if ended is not None:
                        pause_s = _FIRST_PAUSE_S
                        self._tell(self._hear, ended)
                    elif is_first:
                        is_first = False
                    else:
                        self._tell(self._catch_up)
                    since_s = time.time() - 1
            except SchedulerError as exc:
                logger.debug("Ends of containers are not heard of: %s", exc)
            if self._is_closed.wait(pause_s):
                return
            logger.debug("The engine's events are asked for again")
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _tell(self, callback: Callable[..., None], *args: object) -> None:
        try:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop is closed, and we are not: nobody hears any more
            self._is_closed.set()

    def _hear(self, ended: Ended) -> None:
        if ended.key in self._followed and not self._is_closed.is_set():
            self._spawn(self._conclude(*self._followed[ended.key], ended))

    def _catch_up(self) -> None:
        """Ask about all: ends may have been missed."""
        self._spawn(self._conclude_all())

    async def _conclude_all(self) -> None:
        current = [one for one in self._followed.values() if self._is_current(*one)]
        states = await self.ask([job for _, job in current])
        for wanted, job in current:
            # Meanwhile it may have come to be in its next attempt.
            if states[job].phase is Phase.ENDED and self._is_current(wanted, job):
                self.say(job, states[job])

    async def _conclude(self, wanted: Wanted, job: Job, ended: Ended) -> None:
        state = BackendState(Phase.ENDED, ended.exit_code)
        if self._is_current(wanted, job) and (
            ended.exit_code or not is_settled(wanted.metadir, wanted.tag)
        ):
            state = (await self._call(self._look, {wanted: job}))[wanted]
            if state.phase not in (Phase.ENDED, Phase.GONE):
                return
        if self._is_current(wanted, job):
            self.say(job, state._replace(jid=ended.id if job.jid is None else None))
            self._clear(wanted)
        else:
            # The end of an earlier attempt is known, or nobody's business.
            self._bury(wanted)

    def _is_current(self, wanted: Wanted, job: Job) -> bool:
        """Whether this is the attempt of the job that counts."""
        return wanted.key == self._keys.submission_key(job)

    def say(self, job: Job, state: BackendState) -> None:
        """Report the state of a job, if anybody wants to hear of it."""
        if self.report is not None:
            self.report(job, state)

    # --- what is left --------------------------------------------------------------------------

    def _clear(self, wanted: Wanted) -> None:
        """Have a container that has ended removed, if that is recorded; else later."""
        if is_settled(wanted.metadir, wanted.tag):
            self._bury(wanted)

    def _bury(self, wanted: Wanted) -> None:
        """Have a container that has ended removed; where a call takes long, several by one."""
        if self._followed.pop(wanted.key, None) is None or not self._remove():
            return
        self._over.append(wanted)
        if len(self._over) >= self.client.traits.removal_batch:
            self._remove_over()
        elif self._remover is None:
            loop = asyncio.get_running_loop()
            self._remover = loop.call_later(_REMOVAL_LINGER_S, self._remove_over)

    def _remove_over(self) -> None:
        if self._remover is not None:
            self._remover.cancel()
            self._remover = None
        over, self._over = self._over, []
        if over:
            self._spawn(self._call(self.client.remove, *over))

    async def sweep(self) -> None:
        """Remove what is over of runs before this one that were killed.

        Raises:
            SchedulerError: If nobody answers.
        """
        await self._remove_all(
            container
            for container in await self._call(self.client.look)
            if is_settled(container.metadir, container.tag)
        )

    async def _remove_all(self, containers: Iterable[Container]) -> None:
        """Remove those that do not run, and are not to stay."""
        over = [
            as_wanted(container)
            for container in containers
            if container.stage is not Stage.RUNNING and not container.keep
        ]
        if over:
            await self._call(self.client.remove, *over)

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.get_running_loop().create_task(self._log_errors(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _log_errors(self, work: Awaitable[None]) -> None:
        try:
            await work
        except SchedulerError as exc:
            # What is not heard now, the next question tells; the sweep removes what is left.
            logger.debug("Nothing is known of a container for now: %s", exc)

    async def close(self) -> None:
        """Hear no more, and remove what is over; containers that run, run on."""
        self._is_closed.set()
        self.report = None
        until_s = time.monotonic() + _REMOVAL_WAIT_S
        self._remove_over()
        while self._tasks and time.monotonic() < until_s:
            await asyncio.wait(self._tasks, timeout=until_s - time.monotonic())
            self._remove_over()  # what these have found to be over
        for is_last in (False, True):
            try:
                await self._sweep_at_last()
                break
            except SchedulerError as exc:
                # Podman stumbles over what is being removed by somebody else.
                if is_last:
                    logger.warning("Containers may be left over: %s", exc)
        await self._call(self.client.close)
        if self._listener is not None:
            await self._call(self._listener.join, _CLOSE_WAIT_S)

    async def _sweep_at_last(self) -> None:
        """Remove what is over; wait for what is about to be, and end what takes long."""
        until_s = time.monotonic() + _CLOSE_WAIT_S
        pause_s = 0.01
        while True:
            followed = [wanted for wanted, _ in self._followed.values()]
            containers: list[Container] = await self._call(self.client.look, followed)
            done = [container for container in containers if self._is_done_with(container)]
            running = [container for container in done if container.stage is Stage.RUNNING]
            if not running or time.monotonic() > until_s:
                break
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.2)
        await self._remove_all(done)
        for one in map(as_wanted, running):
            if _was_told(one.metadir, one.tag):
                await self._call(partial(self.client.signal, force=True), one)
                if self._remove():
                    await self._call(self.client.remove, one)

    def _is_done_with(self, container: Container) -> bool:
        """Whether nobody needs a container any more when it has ended.

        Those of attempts that have no claims are of earlier runs, whose jobs have run again since.
        Or nobody has asked for them in this run: whoever does so later revokes them.
        """
        key, metadir, tag = as_wanted(container)
        is_current = key in self._followed and self._is_current(*self._followed[key])
        if not is_current and not _is_begun(metadir, tag):
            return True
        if container.stage is Stage.RUNNING:
            return _was_told(metadir, tag)
        return key in self._killed or is_settled(metadir, tag)
