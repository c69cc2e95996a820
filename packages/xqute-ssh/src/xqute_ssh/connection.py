"""The connection to one server, made anew whenever it is lost, and questions to its agent."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from xqute import logger

from .access import AccessError, Configuration
from .commands import build_call
from .files import Files
from .link import Link, LinkError, Setup
from .options import Server
from .parse import Event, Greeting

__all__ = ["Connection"]

_FIRST_RETRY_S, _LAST_RETRY_S = 0.5, 30.0
#: Until a server is tried again where that is not likely to help.
_LASTING_RETRY_S = 60.0
_CLOCK_OFF_S = 5.0
#: Between two questions whether anybody is there, and until that is answered at the latest.
_PULSE_INTERVAL_S, _PULSE_TIMEOUT_S = 15.0, 60.0


class Listener(Protocol):
    """Who is told what happens on a connection."""

    def on_open(self) -> None:
        """It is there, with a new agent."""

    def on_news(self, event: Event) -> None:
        """The agent has said something that is no answer."""

    def on_lost(self, why: str) -> None:
        """It was there, and is lost."""

    def on_change(self) -> None:
        """It may be used now, or it is known why it cannot."""


class Connection:
    """A server's agent, within reach or not; used on one event loop.

    Args:
        server: The server, complete.
        listener: Told what happens.
        configuration: The ssh configuration.
        executor: The threads that may wait for it.
        gate: Held while connecting: servers refuse too many logins at once.
        build_setup: Gives what an agent is told first.

    Attributes:
        server: The server.
        link: The connection; None: there is none.
        files: For files over it; None: there is none.
        trouble: Why there is none.
        tried: Set once it is known whether it can be reached.
        greeting: The last one of an agent there.
        lost: Done when the last connection is lost, and why; None: there was none.
    """

    def __init__(
        self,
        server: Server,
        listener: Listener,
        *,
        configuration: Configuration,
        executor: Executor,
        gate: asyncio.Semaphore,
        build_setup: Callable[[Server], Setup],
    ) -> None:
        self.server = server
        self.link: Link | None = None
        self.files: Files | None = None
        self.trouble: AccessError | None = None
        self.tried = asyncio.Event()
        self.greeting: Greeting | None = None
        self._listener = listener
        self._configuration = configuration
        self._executor = executor
        self._gate = gate
        self._build_setup = build_setup
        self._loop = asyncio.get_running_loop()
        self._back = asyncio.Event()
        self.lost: asyncio.Future[str] | None = None
        self._numbers = itertools.count(1)
        self._questions: dict[int, tuple[asyncio.Future[list[Event]], list[Event]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

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
            opening = self._executor.submit(Link.open, self.server, self._configuration, setup)
            try:
                return await asyncio.wrap_future(opening)
            except asyncio.CancelledError:
                opening.add_done_callback(_close_unwanted)
                raise

    def _note_trouble(self, exc: AccessError) -> None:
        if str(exc) != str(self.trouble):
            logger.warning("ssh: server %r cannot be used: %s", self.server.name, exc)
        self.trouble = exc
        self.tried.set()
        self._listener.on_change()

    async def _attend(self, link: Link) -> None:
        """Work over a connection until it is lost; ends by itself only then."""
        self.lost = self._loop.create_future()
        link.attend(
            partial(self._call_soon, self._on_events, link),
            partial(self._call_soon, self._on_lost, link),
        )
        self._greet(link.greeting, link.clock_ahead_s)
        self.link = link
        self.files = Files(link, self._executor, self.ask)
        self.trouble = None
        stop_pulse = self.spawn(self._feel_pulse(self.lost))
        try:
            self._listener.on_open()
            self._back.set()
            self.tried.set()
            self._listener.on_change()
            why = await self.lost
            self.trouble = AccessError(f"{self.server.address}: {why}", lasting=False)
            self._listener.on_lost(why)
        finally:
            self.link = self.files = None
            self._back.clear()
            stop_pulse()
            questions, self._questions = self._questions, {}
            for future, _ in questions.values():
                if not future.done():
                    future.set_exception(LinkError("the connection was lost"))
            # Not in a thread of ours: all of them may be waiting for what this ends.
            await asyncio.shield(self._loop.run_in_executor(None, link.close))

    async def wait(self) -> None:
        """Return when there is a connection."""
        await self._back.wait()

    async def _feel_pulse(self, lost: asyncio.Future[str]) -> None:
        """Ask now and then for an answer, whatever it goes through; without one, it is lost."""
        while True:
            await asyncio.sleep(_PULSE_INTERVAL_S)
            try:
                async with asyncio.timeout(_PULSE_TIMEOUT_S):
                    await self.ask(partial(build_call, "check"))
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
        if link is self.link and self.lost is not None and not self.lost.done():
            self.lost.set_result(why)

    def _greet(self, greeting: Greeting, clock_ahead_s: float) -> None:
        last, self.greeting = self.greeting, greeting
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
        """End what was to be done beside; the connection itself ends with `run`."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    # --- questions -----------------------------------------------------------------------------

    def next_number(self) -> int:
        """Give a number for a job or a question."""
        return next(self._numbers)

    def send(self, code: str) -> None:
        """Have the agent run code.

        Raises:
            LinkError: If there is no connection.
        """
        if self.link is None:
            raise LinkError(f"{self.server.address} is away")
        self.link.send(code)

    async def ask(self, build: Callable[[int], str]) -> list[Event]:
        """Ask the agent; give what it says, the last word being `done` or `failed`.

        Args:
            build: Gives the code, from the question's number.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        number = self.next_number()
        future: asyncio.Future[list[Event]] = self._loop.create_future()
        self._questions[number] = (future, [])
        try:
            self.send(build(number))
            return await future
        finally:
            self._questions.pop(number, None)

    def _on_events(self, link: Link, events: list[Event]) -> None:
        if link is not self.link:
            return  # late words of one that was given up
        for event in events:
            if event.number not in self._questions:
                self._listener.on_news(event)
                continue
            future, answer = self._questions[event.number]
            answer.append(event)
            if event.kind in ("done", "failed") and not future.done():
                future.set_result(answer)


def _as_trouble(server: Server, exc: Exception) -> AccessError:
    return AccessError(f"{server.address}: {type(exc).__name__}: {exc}", lasting=True)


def _close_unwanted(opening: Future[Link]) -> None:
    """Close a connection that nobody waits for any more; in its thread, as the loop may be over."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
