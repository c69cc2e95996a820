"""Ending attempts on one server: signals, many in one round trip, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from xqute.defaults import SIGNAL_BASE

from .commands import build_call
from .entry import Entry
from .link import LinkError

if TYPE_CHECKING:
    from .host import Host

__all__ = ["Killing", "left_processes"]

#: Seconds in which a process may still be about to become the command; until its second TERM.
_YOUNG_S, _TERM_AGAIN_S = 1.0, 0.2


class Killing:
    """Has the agent of a server end attempts.

    Args:
        host: The server.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._unswept: set[Entry] = set()
        self._sweeping = asyncio.Lock()

    async def kill(self, signal: str, entries: Sequence[Entry]) -> None:
        """Send a signal to attempts, in one round trip; also with what else is asked for just now.

        If there is no connection, the next one sends it. A bash that has just forked forgets a
        signal that comes before it has put back its handlers, so that a command so young may not
        have seen TERM. It gets another one.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        _make_due(signal, entries)
        await self.send()
        loop = asyncio.get_running_loop()
        young = [entry for entry in entries if loop.time() - entry.started_s < _YOUNG_S]
        if young and signal == "TERM":
            loop.call_later(_TERM_AGAIN_S, self._terminate_again, young)

    async def send(self) -> None:
        """Send what signals are due.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        await asyncio.sleep(0)  # who kills many one by one does so in one turn of the loop
        due: defaultdict[str, list[Entry]] = defaultdict(list)
        for entry in self._host.entries.values():
            if entry.due_signal and entry.pid is not None and not entry.is_over:
                due[entry.due_signal].append(entry)
        for signal, entries in due.items():
            words = [word for entry in entries for word in (entry.pid, entry.ticks)]
            for entry in entries:
                entry.due_signal = ""
            try:
                await self._host.connection.ask(partial(_build, "kill", signal, *words))
            except LinkError:
                # It may have been lost long before that was noticed: the next one sends it.
                _make_due(signal, entries)
                raise

    async def send_quietly(self) -> None:
        """Send what signals are due; if the connection is lost, the next one sends them."""
        with suppress(LinkError):
            await self.send()

    def _terminate_again(self, entries: Sequence[Entry]) -> None:
        _make_due("TERM", entries)
        if self._host.link is not None:
            self._host.connection.spawn(self.send_quietly())

    async def sweep(self, entry: Entry) -> None:
        """End what is left of an attempt's session, together with those that end meanwhile.

        Raises:
            LinkError: If there is no connection, or it is lost.
        """
        self._unswept.add(entry)
        async with self._sweeping:
            entries, self._unswept = self._unswept, set()
            if entries:
                pids = [entry.pid for entry in entries]
                try:
                    await self._host.connection.ask(partial(_build, "sweep", *pids))
                except LinkError:
                    self._unswept |= entries  # the others wait for their turn here
                    raise


def _make_due(signal: str, entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.due_signal != "KILL":
            entry.due_signal = signal


def _build(function: str, *words_and_number: object) -> str:
    *words, number = words_and_number
    return build_call(function, number, *words)


def left_processes(entry: Entry, words: Sequence[str]) -> bool:
    """Whether an attempt may have left processes: it was killed, or died of a signal."""
    died = words[0] == "ended" and words[1].isdigit() and int(words[1]) > SIGNAL_BASE
    return entry.pid is not None and (entry.killed or died)
