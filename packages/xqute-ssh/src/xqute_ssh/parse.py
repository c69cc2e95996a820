"""What agents say: lines to events, and their greeting. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from xqute.machine import Machine

__all__ = ["Event", "Events", "Greeting", "ProtocolError", "parse_greeting", "unescape"]

_LINE = re.compile(rb"@([1-9][0-9]{0,3}) ([a-z]+) ([0-9]+)(?: (.*))?", re.DOTALL)
_ESCAPE = re.compile(rb"\\([\\n0])")
_MEANING = {b"\\": b"\\", b"n": b"\n", b"0": b"\0"}
#: An agent never says a longer line.
_LONGEST_LINE = 1024
#: Of a greeting.
_N_WORDS = 8


class ProtocolError(Exception):
    """The other side says what no agent does."""


class Event(NamedTuple):
    """One line of an agent.

    Attributes:
        kind: What it is about: started, ended, data, done, failed, ...
        number: Of the job or question.
        rest: The words after it.
    """

    kind: str
    number: int
    rest: bytes

    @property
    def words(self) -> list[str]:
        """The rest, as words."""
        return self.rest.decode("utf-8", "surrogateescape").split(" ")


class Events:
    """Puts together events from what arrives, in pieces of any size."""

    def __init__(self) -> None:
        self._left = b""

    def feed(self, data: bytes) -> list[Event]:
        """Give the events that are whole now.

        Raises:
            ProtocolError: If this is not what an agent says.
        """
        *lines, self._left = (self._left + data).split(b"\n")
        if len(self._left) > _LONGEST_LINE:
            raise ProtocolError(f"a line without end: {self._left[:80]!r}")
        return [_parse_line(line) for line in lines]


def _parse_line(line: bytes) -> Event:
    match = _LINE.fullmatch(line)
    if match is None or int(match[1]) != len(line) - len(match[1]) - 2:
        raise ProtocolError(f"this is no event: {line[:80]!r}")
    return Event(match[2].decode(), int(match[3]), match[4] or b"")


def unescape(text: bytes) -> bytes:
    """Give the bytes that a piece of a file stands for."""
    return _ESCAPE.sub(lambda match: _MEANING[match[1]], text) if b"\\" in text else text


class Greeting(NamedTuple):
    """What an agent says of its machine when it begins.

    Attributes:
        host: Its name for itself.
        boot_id: Of its boot; "-" where it cannot tell.
        epoch_ms: Its clock.
        shared: Whether it sees the driver's workdir.
        kills_at_logout: Whether it is set up to kill what users leave running.
        machine: What it has for jobs.
    """

    host: str
    boot_id: str
    epoch_ms: int
    shared: bool
    kills_at_logout: bool
    machine: Machine


def parse_greeting(event: Event) -> Greeting:
    """Read the event `hello`.

    Raises:
        ProtocolError: If it is none.
    """
    words = event.words
    if event.kind != "hello" or len(words) != _N_WORDS or not words[2].isdigit():
        raise ProtocolError(f"this is no greeting: {event}")
    host, boot_id, epoch_ms, shared, kills, cpus, memory_mib, gpus = words
    machine = Machine(
        int(cpus) if cpus.isdigit() and int(cpus) else 1,
        int(memory_mib) if memory_mib.isdigit() else None,
        () if gpus == "-" else tuple(filter(None, gpus.split(","))),
    )
    return Greeting(host, boot_id, int(epoch_ms), shared == "yes", kills == "yes", machine)
