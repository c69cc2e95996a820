"""One server over time: its connection, made anew when it is lost, and the attempts that it has."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from functools import partial
from typing import Any

from xqute import Job, JobCause, Resources, logger
from xqute.machine import Holding, Machine
from xqute.scheduler import BackendState, Phase

from .access import AccessError, Configuration
from .commands import build_call
from .entry import Entry
from .files import Files, FilesError
from .homing import fetch_all, follow
from .killing import Killing, left_processes
from .link import Link, LinkError, Setup
from .options import Server
from .parse import Event, Greeting
from .staging import Transfer, mirror_start, return_lease, take_lease

__all__ = ["Host", "RefusedError"]

#: Starts that are on their way and not acknowledged, at the most.
_MOST_UNACKNOWLEDGED = 16
_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
#: Until a server is tried again where that is not likely to help.
_LASTING_RETRY_S = 60.0
#: How many running jobs' outputs are looked at in one go.
_MOST_FOLLOWED = 64
_CLOCK_OFF_S = 5.0
#: Between two questions whether anybody is there, and until that is answered at the latest.
_PULSE_INTERVAL_S, _PULSE_TIMEOUT_S = 15.0, 60.0
#: How long an end may go untold until it is asked for.
_UNTOLD_S = 5.0

Report = Callable[[Job, BackendState], None]
#: A state in words of the agent: what it means to the engine.
_PHASES = {
    "running": Phase.RUNNING,
    "ended": Phase.ENDED,
    "gone": Phase.GONE,
    "absent": Phase.GONE,
    "revoked": Phase.GONE,
    "rebooted": Phase.GONE,
}


class RefusedError(Exception):
    """A server did not start an attempt, and says why; it never will."""


class Host:
    """A server and what is known of it; used on one event loop.

    Args:
        server: The server, complete.
        configuration: The ssh configuration.
        executor: The threads that may wait for it.
        gate: Held while connecting: servers refuse too many logins at once.
        build_setup: Gives what an agent is told first.
        report: Told of changes of jobs.
        changed: Called when jobs may be placed that could not be before.
        log_interval_s: Seconds between two looks at the outputs of running jobs.

    Attributes:
        load: How many places are taken.
        n_starting: How many of them by jobs that are on their way.
        held: What jobs hold that are said to need something.
        link: The connection; None: there is none.
        trouble: Why not.
        tried: Set once it is known whether it can be reached.
    """

    def __init__(
        self,
        server: Server,
        *,
        configuration: Configuration,
        executor: Executor,
        gate: asyncio.Semaphore,
        build_setup: Callable[[Server], Setup],
        report: Report,
        changed: Callable[[], None],
        log_interval_s: float,
    ) -> None:
        self.server = server
        self.load = 0
        self.n_starting = 0
        self.held: dict[Job, Holding] = {}
        self.link: Link | None = None
        self.files: Files | None = None
        self.trouble: AccessError | None = None
        self.tried = asyncio.Event()
        self._back = asyncio.Event()
        self.entries: dict[int, Entry] = {}
        self._configuration = configuration
        self._executor = executor
        self._gate = gate
        self._build_setup = build_setup
        self._report = report
        self._changed = changed
        self._log_interval_s = log_interval_s
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._questions: dict[int, tuple[asyncio.Future[list[Event]], list[Event]]] = {}
        self._lost: asyncio.Future[str] | None = None
        self._last: Greeting | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._n_refusals = 0
        self._aside_until_s = 0.0
        self.killing = Killing(self)

    def __repr__(self) -> str:
        here = "there" if self.link is not None else f"away: {self.trouble}"
        return f"<Host {self.server.address}: {here}, {self.load} jobs>"

    @property
    def is_usable(self) -> bool:
        """Whether jobs may be sent there now."""
        return self.link is not None and self._loop.time() >= self._aside_until_s

    @property
    def is_busy(self) -> bool:
        """Whether as many jobs are on their way there as may be."""
        return self.n_starting >= _MOST_UNACKNOWLEDGED

    @property
    def is_staged(self) -> bool:
        """Whether its jobs have a workdir of their own there; as its last greeting said."""
        return self._last is not None and not self._last.shared

    def try_fit(self, wanted: Resources | None) -> tuple[str, ...] | None:
        """Give the graphics processors that a job would get; None: there is no room for it."""
        if wanted is None:
            return ()
        return self.machine.fit(wanted, self.held.values()) if self.machine is not None else None

    @property
    def machine(self) -> Machine | None:
        """What it has for jobs, as its last greeting said."""
        return None if self._last is None else self._last.machine

    # --- the connection ------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        n_failures = 0
        while True:
            began_s = self._loop.time()
            lasting = False
            try:
                await self._attend(await self._open())
            except Exception as exc:  # noqa: BLE001  # whatever it is, the others can be used
                trouble = exc if isinstance(exc, AccessError) else _as_trouble(self.server, exc)
                self._note_trouble(trouble)
                lasting = trouble.lasting
            if self._loop.time() - began_s > _LAST_RETRY_S:
                n_failures = 0  # it worked for a while, or took its time to fail
            wait_s = min(_FIRST_RETRY_S * 2.0 ** min(n_failures, 20), _LAST_RETRY_S)
            if lasting:
                wait_s = _LASTING_RETRY_S
            n_failures += 1
            await asyncio.sleep(wait_s * random.uniform(0.75, 1.25))  # noqa: S311  # jitter

    async def _open(self) -> Link:
        async with self._gate:
            setup = self._build_setup(self.server)
            opening = self._loop.run_in_executor(
                self._executor, Link.open, self.server, self._configuration, setup
            )
            try:
                return await asyncio.shield(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_unwanted)
                raise

    def _note_trouble(self, exc: AccessError) -> None:
        if str(exc) != str(self.trouble):
            logger.warning("ssh: server %r cannot be used: %s", self.server.name, exc)
        self.trouble = exc
        self.tried.set()
        self._changed()

    async def _attend(self, link: Link) -> None:
        """Work over a connection until it is lost; ends by itself only then."""
        self._lost = self._loop.create_future()
        link.attend(
            partial(self._call_soon, self._on_events, link),
            partial(self._call_soon, self._on_lost, link),
        )
        self._greet(link.greeting, link.clock_ahead_s)
        self.link = link
        self.files = Files(link, self._executor, self.ask)
        self.trouble = None
        self._n_refusals, self._aside_until_s = 0, 0.0
        stops = [self.spawn(self._feel_pulse(self._lost))]
        if self.is_staged:
            stops.append(self.spawn(self._follow()))
        try:
            self._resume()
            self._back.set()
            self.tried.set()
            self._changed()
            why = await self._lost
            self.trouble = AccessError(f"{self.server.address}: {why}", lasting=False)
            n_jobs = len(self.entries)
            logger.warning("ssh: server %r: %s; %d jobs wait for it", self.server.name, why, n_jobs)
        finally:
            self.link = self.files = None
            self._back.clear()
            for stop in stops:
                stop()
            questions, self._questions = self._questions, {}
            for future, _ in questions.values():
                if not future.done():
                    future.set_exception(LinkError("the connection was lost"))
            await asyncio.shield(self._loop.run_in_executor(self._executor, link.close))

    async def _feel_pulse(self, lost: asyncio.Future[str]) -> None:
        """Ask now and then for an answer, whatever it goes through; without one, it is lost."""
        while True:
            await asyncio.sleep(_PULSE_INTERVAL_S)
            try:
                async with asyncio.timeout(_PULSE_TIMEOUT_S):
                    await self.check([])
            except TimeoutError:
                if not lost.done():
                    lost.set_result(f"no answer within {_PULSE_TIMEOUT_S:g} s")
            except LinkError:
                return

    def _call_soon(self, callback: Callable[..., None], *args: Any) -> None:
        """Have something done on the event loop; called from threads."""
        with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _on_lost(self, link: Link, why: str) -> None:
        if link is self.link and self._lost is not None and not self._lost.done():
            self._lost.set_result(why)

    def _greet(self, greeting: Greeting, clock_ahead_s: float) -> None:
        last, self._last = self._last, greeting
        name = self.server.name
        if last is not None and last.boot_id != greeting.boot_id:
            logger.warning("ssh: server %r has been started anew", name)
        if abs(clock_ahead_s) > _CLOCK_OFF_S:
            logger.warning("ssh: the clock of server %r is %+.1f s off", name, clock_ahead_s)
        if greeting.kills_at_logout and last is None:
            logger.warning(
                "ssh: server %r kills what users leave running when they log out "
                "(KillUserProcesses): its jobs end with the connection. `loginctl enable-linger` "
                "there prevents that",
                name,
            )
        logger.debug("ssh: server %r greets: %s", name, greeting)

    def _resume(self) -> None:
        """Take up what an earlier connection has left: ask about each attempt, or send it again."""
        adopted: list[object] = []
        for entry in self.entries.values():
            entry.forget_pieces()
            if entry.accepted.done() and not entry.is_over:
                adopted += (entry.number, *entry.identity, "1" if entry.staged else "")
            elif not entry.accepted.done():
                self._send_start(entry)
        if adopted:
            self._send("adopt", *adopted)
        if any(entry.due_signal for entry in self.entries.values()):
            self.spawn(self.killing.send())

    def spawn(self, work: Coroutine[Any, Any, None]) -> Callable[[], object]:
        """Have something done beside; give what cancels it."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task.cancel

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("ssh: server %r", self.server.name, exc_info=task.exception())

    async def close(self) -> None:
        """End what is under way for its jobs' files; the connection ends with `run`."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # --- questions -----------------------------------------------------------------------------

    def _send(self, function: str, *words: object) -> None:
        if self.link is None:
            raise LinkError(f"{self.server.address} is away")
        self.link.send(build_call(function, *words))

    def next_number(self) -> int:
        """Give a number for a job or a question."""
        return next(self._numbers)

    async def ask(self, build: Callable[[int], str]) -> list[Event]:
        """Ask the agent; give what it says, the last word being `done` or `failed`.

        Args:
            build: Gives the code, from the question's number.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        if self.link is None:
            raise LinkError(f"{self.server.address} is away")
        number = self.next_number()
        future: asyncio.Future[list[Event]] = self._loop.create_future()
        self._questions[number] = (future, [])
        self.link.send(build(number))
        try:
            return await future
        finally:
            self._questions.pop(number, None)

    async def check(self, identities: Sequence[tuple[str, str, str, str]]) -> list[list[str]]:
        """Ask what is true of attempts: for each the agent's words, "running", "ended", ...

        Where the first connection is still being made, that is waited for.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        await self.tried.wait()
        words = itertools.chain.from_iterable(identities)
        events = await self.ask(lambda number: build_call("check", number, *words))
        return [event.words[1:] for event in events if event.kind == "state"]

    async def revoke(self, attempts: Iterable[tuple[str, str]]) -> bool:
        """See that attempts, a folder and a tag each, never start; False: one may have.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        words = itertools.chain.from_iterable(attempts)
        events = await self.ask(lambda number: build_call("revoke", number, *words))
        return events[-1].kind == "done"

    # --- attempts ------------------------------------------------------------------------------

    async def start(self, entry: Entry) -> str:
        """Send an attempt and give its native id, once the agent says that it has started.

        If the connection is lost meanwhile, this waits for the next one.

        Raises:
            LinkError: If there is no connection: nothing was sent.
            RefusedError: If the agent says that it cannot be started.
            OSError: If the driver's side of its folder cannot be written.
        """
        try:
            if self.link is None or entry.staged != self.is_staged:
                raise LinkError(f"{self.server.address} is away")
            if entry.staged and not take_lease(entry):
                # Given up before it began: no server is ever to hear of it.
                entry.accepted.set_result(entry.jid)
                entry.concluded.set_result(BackendState(Phase.GONE))
                return entry.jid
            entry.was_sent = True
            self.entries[entry.number] = entry
            self._send_start(entry)
            return await asyncio.shield(entry.accepted)
        finally:
            if not entry.was_sent:
                self.free_place(entry.job)

    def give_up(self, entry: Entry, why: str) -> None:
        """An attempt that was sent, and not acknowledged, is lost: wait for it no longer."""
        entry.is_over = True
        self.forget(entry)
        entry.accepted.set_result(entry.jid)
        entry.concluded.set_result(BackendState(Phase.GONE, reason=why))

    async def bring(self, transfer: Transfer) -> None:
        """Bring a file, or a folder.

        Raises:
            FilesError: If that cannot be done.
            LinkError: If there is no connection, or it is lost.
        """
        if self.files is None:
            raise LinkError(f"{self.server.address} is away")
        await self.files.bring(transfer)

    def _send_start(self, entry: Entry) -> None:
        words = (entry.number, entry.folder, entry.tag, entry.remote_script)
        staged = (entry.script or "",) if entry.staged else ()
        self._send("start", *words, *staged)

    def adopt(self, entry: Entry) -> None:
        """Have the agent tell the end of an attempt that another driver has started."""
        entry.accepted.set_result(entry.jid)
        self.entries[entry.number] = entry
        self.load += 1
        self.attend(entry)

    def miss(self, entry: Entry) -> None:
        """An attempt is over, as its files say, and that was not told: have it told by another."""
        now_s = self._loop.time()
        entry.missed_s = entry.missed_s or now_s
        if now_s - entry.missed_s > _UNTOLD_S:
            entry.missed_s = now_s
            self.attend(entry)

    def attend(self, entry: Entry) -> None:
        """Have the agent tell the end of an attempt that it did not start itself."""
        if self.link is not None:
            self._send("adopt", entry.number, *entry.identity, "1" if entry.staged else "")

    def _on_events(self, link: Link, events: list[Event]) -> None:
        if link is not self.link:
            return  # late words of one that was given up
        for event in events:
            if event.number in self._questions:
                self._on_answer(event)
            elif (entry := self.entries.get(event.number)) is not None and not entry.is_over:
                try:
                    self._on_news(entry, event)
                except OSError as exc:
                    logger.warning("ssh: the files of %r cannot be written: %s", entry.job, exc)

    def _on_answer(self, event: Event) -> None:
        future, events = self._questions[event.number]
        events.append(event)
        if event.kind in ("done", "failed") and not future.done():
            future.set_result(events)

    def _on_news(self, entry: Entry, event: Event) -> None:
        if event.kind in ("data", "file"):
            entry.add_piece(event)
        elif event.kind == "started":
            self._on_started(entry, event)
        elif event.kind == "failed":
            self._on_refused(entry, event)
        elif event.kind in _PHASES:
            self._on_ended(entry, [event.kind, *event.words])

    def _on_started(self, entry: Entry, event: Event) -> None:
        entry.set_process(*event.words)
        entry.started_s = self._loop.time()
        if not entry.accepted.done():
            entry.accepted.set_result(entry.jid)
        if entry.staged:
            mirror_start(entry)
        if entry.pid is not None:
            self._tell(entry, BackendState(Phase.RUNNING))

    def _on_refused(self, entry: Entry, event: Event) -> None:
        entry.is_over = True
        if entry.staged:
            return_lease(entry)
        self.forget(entry)
        if not entry.accepted.done():
            entry.accepted.set_exception(RefusedError(event.rest.decode("utf-8", "replace")))

    def _on_ended(self, entry: Entry, words: list[str]) -> None:
        entry.end(words.pop(1))
        if not entry.accepted.done():
            entry.accepted.set_result(entry.jid)
        if entry.staged or left_processes(entry, words):
            self.spawn(self._bring_home(entry, words))
        else:
            self._conclude(entry, self.state_of(words))

    def state_of(self, words: Sequence[str]) -> BackendState:
        """Say what an agent's words about an attempt mean."""
        kind = words[0]
        phase = _PHASES[kind]
        if phase is not Phase.GONE:
            rc = int(words[1]) if phase is Phase.ENDED and words[1].isdigit() else None
            return BackendState(phase, rc)
        where = f"server {self.server.name!r}"
        if kind == "rebooted":
            cause, why = JobCause.HOST_REBOOTED, f"{where} was started anew while it ran"
        else:
            cause, why = JobCause.DISAPPEARED, f"its processes are gone from {where}"
            if self._last is not None and self._last.kills_at_logout:
                why += ", which kills what users leave running when they log out"
        return BackendState(Phase.GONE, cause=cause, reason=why)

    async def _bring_home(self, entry: Entry, words: list[str]) -> None:
        """An attempt has ended: end what it left, fetch its files, and only then say so.

        As often as it takes: until that is done, the attempt is this server's.
        """
        state = self.state_of(words)
        while True:
            try:
                if left_processes(entry, words):
                    await self.killing.sweep(entry)
                if entry.staged:
                    if self.files is None:
                        raise LinkError(f"{self.server.address} is away")
                    problem = await fetch_all(self.files, entry)
                    if problem and state.rc == 0:
                        state = state._replace(cause=JobCause.SETUP, reason=problem)
                break
            except LinkError:
                await self._wait_for_link()
        self._conclude(entry, state)

    async def _wait_for_link(self) -> None:
        await self._back.wait()

    async def _follow(self) -> None:
        """Bring the outputs of running jobs up to date, again and again."""
        while True:
            await asyncio.sleep(self._log_interval_s)
            running = [entry for entry in self.entries.values() if entry.pid and not entry.is_over]
            files = self.files
            for entry in random.sample(running, min(len(running), _MOST_FOLLOWED)):
                async with entry.lock:
                    if not entry.is_over and files is not None:
                        with suppress(FilesError, LinkError, OSError):
                            await follow(files, entry)

    def _conclude(self, entry: Entry, state: BackendState) -> None:
        self.forget(entry)
        if not entry.concluded.done():
            entry.concluded.set_result(state)
        self._tell(entry, state)

    def forget(self, entry: Entry) -> None:
        """Give its place to another."""
        if self.entries.pop(entry.number, None) is not None:
            self.free_place(entry.job)

    def end_starting(self) -> None:
        """A job is on its way no more, one way or the other."""
        self.n_starting -= 1
        self._changed()

    def free_place(self, job: Job) -> None:
        """Give back what a job had."""
        self.load -= 1
        self.held.pop(job, None)
        self._changed()

    def _tell(self, entry: Entry, state: BackendState) -> None:
        self._report(entry.job, state._replace(jid=entry.accepted.result()))

    def note_refusal(self, words: str) -> None:
        """It has refused a job: it is set aside for a while, longer each time."""
        if self._loop.time() < self._aside_until_s:
            return  # one that was on its way already
        self._n_refusals += 1
        wait_s = min(_FIRST_RETRY_S * 2.0**self._n_refusals, _LASTING_RETRY_S)
        self._aside_until_s = self._loop.time() + wait_s
        self._loop.call_later(wait_s, self._changed)
        logger.warning(
            "ssh: server %r refuses jobs, and gets none for %.0f s: %s",
            self.server.name,
            wait_s,
            words,
        )

    def note_success(self) -> None:
        """It has taken a job."""
        self._n_refusals = 0


def _as_trouble(server: Server, exc: Exception) -> AccessError:
    return AccessError(f"{server.address}: {type(exc).__name__}: {exc}", lasting=True)


def _close_unwanted(opening: asyncio.Future[Link]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
