"""Where the commands come from: lines read while jobs run, or arguments of the command line."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import product
from math import prod
from typing import NamedTuple, Protocol

from ..errors import ConfigError, InvalidJobError
from .template import Template, build_shell_command, plain_words

__all__ = ["ArgumentInput", "Command", "Input", "LineInput"]

_CHUNK_BYTES = 65536
#: How far the reader may be ahead. What has been read is counted, and so the jobs still to come are
#: known; what goes on for ever must not fill the memory.
_MOST_AHEAD_BYTES = 64 * 1024 * 1024


class Command(NamedTuple):
    """One command to be run.

    Attributes:
        argv: Its words.
        origin: Where it comes from, for people.
    """

    argv: tuple[str, ...]
    origin: str


class Input(Protocol):
    """What gives the commands of a run."""

    @property
    def n_known(self) -> int:
        """How many commands there are, as far as that is known."""

    @property
    def is_complete(self) -> bool:
        """Whether `n_known` is all there are."""

    def __aiter__(self) -> AsyncIterator[Command | InvalidJobError]:
        """Give each command, or why it can be none."""


class ArgumentInput:
    """Every combination of the groups of arguments, the last changing fastest."""

    is_complete = True

    def __init__(self, groups: Sequence[Sequence[str]], template: Template) -> None:
        self._groups = groups
        self._template = template
        self.n_known = prod(map(len, groups))

    async def __aiter__(self) -> AsyncIterator[Command | InvalidJobError]:
        for values in product(*self._groups):
            yield _fill(self._template, values, "argument")


class LineInput:
    """Lines of a descriptor, read by a thread of its own so that nobody waits for them.

    Args:
        fd: The descriptor; it is not closed.
        template: Makes a command of each line; None: each line is a command for bash, and empty
            lines and those that begin with `#` are skipped.
        separator: What ends a line.
        direct: Whether lines of plain words may be run without a shell.
        name: What the lines come from, for people.
    """

    def __init__(
        self,
        fd: int,
        template: Template | None,
        *,
        separator: bytes = b"\n",
        direct: bool = False,
        name: str = "standard input",
    ) -> None:
        self._fd = fd
        self._template = template
        self._separator = separator
        self._direct = direct
        self._name = name
        self._blocks: deque[bytes] = deque()
        self._n_ahead_bytes = 0
        self._n_lines = 0
        self._n_skipped = 0
        self._ended = False
        self._error: OSError | None = None
        self._lock = threading.Condition()

    @property
    def n_known(self) -> int:
        """How many commands there are, as far as has been read."""
        return self._n_lines - self._n_skipped

    @property
    def is_complete(self) -> bool:
        """Whether all has been read."""
        return self._ended

    async def __aiter__(self) -> AsyncIterator[Command | InvalidJobError]:
        """Give the commands.

        Raises:
            ConfigError: If the descriptor cannot be read.
        """
        number = 0
        async for line in self._lines():
            number += 1
            if self._template is not None:
                yield _fill(self._template, (line,), f"line {number}")
            elif line.strip() and not line.lstrip().startswith("#"):
                plain = plain_words(line) if self._direct else None
                yield Command(plain or build_shell_command(line), f"line {number}")
            else:
                self._n_skipped += 1

    async def _lines(self) -> AsyncIterator[str]:
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
                loop.call_soon_threadsafe(news.set)

        # A daemon: it may be waiting for a line for ever, and nobody can wake it.
        threading.Thread(target=self._read, args=(tell,), name="xqute-input", daemon=True).start()
        while True:
            news.clear()
            with self._lock:
                block = self._blocks.popleft() if self._blocks else None
                ended = self._ended
                if block is not None:
                    self._n_ahead_bytes -= len(block)
                    self._lock.notify()
            if block is not None:
                for line in block.removesuffix(self._separator).split(self._separator):
                    yield os.fsdecode(line)
            elif not ended:
                await news.wait()
            elif self._error is not None:
                raise ConfigError(f"{self._name} cannot be read: {self._error.strerror}")
            else:
                return

    def _read(self, tell: Callable[[], None]) -> None:
        """Read until the end, in blocks of whole lines."""
        begun: list[bytes] = []
        try:
            for chunk in self._chunks():
                cut = chunk.rfind(self._separator) + 1
                if cut:
                    self._put(b"".join([*begun, chunk[:cut]]))
                    begun.clear()
                    tell()
                if cut < len(chunk):
                    begun.append(chunk[cut:])
            if begun:
                self._put(b"".join([*begun, self._separator]))
        except OSError as exc:
            self._error = exc
        finally:
            with self._lock:
                self._ended = True
            tell()

    def _chunks(self) -> Iterator[bytes]:
        while True:
            try:
                chunk = os.read(self._fd, _CHUNK_BYTES)
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                select.select([self._fd], [], [])
                continue
            if not chunk:
                return
            yield chunk

    def _put(self, block: bytes) -> None:
        with self._lock:
            while self._n_ahead_bytes > _MOST_AHEAD_BYTES:
                self._lock.wait()
            self._blocks.append(block)
            self._n_ahead_bytes += len(block)
            self._n_lines += block.count(self._separator)


def _fill(template: Template, values: Sequence[str], origin: str) -> Command | InvalidJobError:
    try:
        return Command(template.build(values), origin)
    except ValueError as exc:
        return InvalidJobError(f"{origin}: {exc}")
