"""The attempts that one server has, from the moment they are sent until their ends are told."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress

from xqute import Job, JobCause, Resources, logger
from xqute.machine import Machine
from xqute.scheduler import BackendState, Phase

from .access import Configuration
from .commands import build_call, build_pass
from .connection import Connection
from .entry import Entry
from .files import FilesError
from .homing import fetch_all, follow
from .killing import Killing, left_processes
from .link import Link, LinkError, Setup
from .options import Server
from .parse import Event
from .places import Lanes, Places
from .staging import Transfer, mirror_start, return_lease, take_lease

__all__ = ["Host", "RefusedError"]

#: How many running jobs' outputs are looked at in one go.
_MOST_FOLLOWED = 64
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
    """A server and the attempts that it has; used on one event loop.

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
        server: The server.
        connection: The connection to it.
        places: Who has a place on it.
        entries: The attempts, by number.
        killing: What ends them.
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
        self.connection = Connection(
            server,
            self,
            configuration=configuration,
            executor=executor,
            gate=gate,
            build_setup=build_setup,
        )
        self.places = Places(server.name, changed)
        self.entries: dict[int, Entry] = {}
        self.killing = Killing(self)
        self.on_change = changed
        self._report = report
        self._log_interval_s = log_interval_s
        self._loop = asyncio.get_running_loop()
        self._lanes = Lanes()

    def __repr__(self) -> str:
        here = "there" if self.link is not None else f"away: {self.connection.trouble}"
        return f"<Host {self.server.address}: {here}, {self.places.load} jobs>"

    @property
    def link(self) -> Link | None:
        """The connection that there is just now."""
        return self.connection.link

    @property
    def is_usable(self) -> bool:
        """Whether jobs may be sent there now."""
        return self.link is not None and not self.places.is_aside

    @property
    def is_staged(self) -> bool:
        """Whether its jobs have a workdir of their own there; as its last greeting said."""
        return self.connection.greeting is not None and not self.connection.greeting.shared

    @property
    def machine(self) -> Machine | None:
        """What it has for jobs, as its last greeting said."""
        return None if self.connection.greeting is None else self.connection.greeting.machine

    def try_fit(self, wanted: Resources | None) -> tuple[str, ...] | None:
        """Give the graphics processors that a job would get; None: there is no room for it."""
        return self.places.try_fit(wanted, self.machine)

    # --- the connection ------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection, and bring the outputs of running jobs up to date, until cancelled."""
        stop_following = self.connection.spawn(self._follow())
        try:
            await self.connection.run()
        finally:
            stop_following()

    async def close(self) -> None:
        """End what is under way for its jobs' files."""
        await self.connection.close()

    def on_open(self) -> None:
        """Take up what an earlier connection has left: ask about each attempt, or send it again."""
        self.places.forget_refusals()
        self._lanes = Lanes()
        adopted: list[object] = []
        for entry in self.entries.values():
            entry.forget_pieces()
            if not entry.accepted.done():
                self._send_start(entry)
            elif not entry.is_over:
                adopted += (entry.number, *_adoption(entry))
        if adopted:
            self.connection.send(build_call("adopt", *adopted))
        if any(entry.due_signal for entry in self.entries.values()):
            self.connection.spawn(self.killing.send_quietly())

    def on_lost(self, why: str) -> None:
        """Say how many jobs wait for the next one."""
        n_jobs, name = len(self.entries), self.server.name
        logger.warning("ssh: server %r: %s; %d jobs wait for it", name, why, n_jobs)

    # --- questions -----------------------------------------------------------------------------

    async def check(self, identities: Sequence[tuple[str, str, str, str]]) -> list[list[str]]:
        """Ask what is true of attempts: for each the agent's words, "running", "ended", ...

        Where the first connection is still being made, that is waited for.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        await self.connection.tried.wait()
        words = itertools.chain.from_iterable(identities)
        events = await self.connection.ask(lambda number: build_call("check", number, *words))
        return [event.words[1:] for event in events if event.kind == "state"]

    async def revoke(self, attempts: Iterable[tuple[str, str]]) -> bool:
        """See that attempts, a folder and a tag each, never start; False: one may have.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        words = itertools.chain.from_iterable(attempts)
        events = await self.connection.ask(lambda number: build_call("revoke", number, *words))
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
                self.places.free(entry.job)

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
        if self.connection.files is None:
            raise LinkError(f"{self.server.address} is away")
        await self.connection.files.bring(transfer)

    def _send_start(self, entry: Entry) -> None:
        words = (entry.number, entry.folder, entry.tag, entry.remote_script)
        staged = (entry.script or "",) if entry.staged else ()
        if entry.staged:
            self.connection.send(build_call("clear", entry.folder, entry.tag))
        lane = self._lanes.take(entry)
        self.connection.send(build_pass(lane, build_call("start", *words, *staged)))

    def adopt(self, entry: Entry) -> None:
        """Have the agent tell the end of an attempt that another driver has started."""
        entry.accepted.set_result(entry.jid)
        self.entries[entry.number] = entry
        self.places.take_running()
        self.attend(entry)

    async def until_home(self, entry: Entry) -> BackendState:
        """Give how an attempt has ended; while its server is away that is not told: it runs."""
        if self.connection.lost is not None:
            waits = entry.concluded, self.connection.lost
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        concluded = entry.concluded
        return concluded.result() if concluded.done() else BackendState(Phase.RUNNING)

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
            self.connection.send(build_call("adopt", entry.number, *_adoption(entry)))

    def on_news(self, event: Event) -> None:
        """Hear what the agent says of an attempt."""
        entry = self.entries.get(event.number)
        if entry is None or entry.is_over:
            return
        try:
            self._on_news(entry, event)
        except OSError as exc:
            logger.warning("ssh: the files of %r cannot be written: %s", entry.job, exc)

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
        self.places.note_success()
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
        self._lanes.free(entry)
        if entry.staged:
            return_lease(entry)
        self.forget(entry)
        if not entry.accepted.done():
            entry.accepted.set_exception(RefusedError(event.rest.decode("utf-8", "replace")))

    def _on_ended(self, entry: Entry, words: list[str]) -> None:
        entry.end(words.pop(1))
        self._lanes.free(entry)
        if not entry.accepted.done():
            entry.accepted.set_result(entry.jid)
        if entry.staged or left_processes(entry, words):
            self.connection.spawn(self._bring_home(entry, words))
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
            greeting = self.connection.greeting
            if greeting is not None and greeting.kills_at_logout:
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
                    problem = await self._fetch_all(entry)
                    if problem and state.rc == 0:
                        state = state._replace(cause=JobCause.SETUP, reason=problem)
                break
            except LinkError:
                await self.connection.wait()
        self._conclude(entry, state)

    async def _fetch_all(self, entry: Entry) -> str:
        if self.connection.files is None:
            raise LinkError(f"{self.server.address} is away")
        return await fetch_all(self.connection.files, entry)

    async def _follow(self) -> None:
        """Bring the outputs of running jobs up to date, again and again."""
        while True:
            await asyncio.sleep(self._log_interval_s)
            running = [
                entry
                for entry in self.entries.values()
                if entry.staged and entry.pid and not entry.is_over
            ]
            for entry in random.sample(running, min(len(running), _MOST_FOLLOWED)):
                async with entry.lock:
                    files = self.connection.files
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
            self.places.free(entry.job)

    def _tell(self, entry: Entry, state: BackendState) -> None:
        self._report(entry.job, state._replace(jid=entry.accepted.result()))


def _adoption(entry: Entry) -> tuple[str, ...]:
    """The words by which the agent is to tell the end of an attempt."""
    return *entry.identity, "1" if entry.staged else ""
