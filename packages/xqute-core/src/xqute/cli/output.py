"""What goes to standard output, written by a thread: a reader who is slow holds up no job."""

from __future__ import annotations

import asyncio
import os
import queue
import select
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import NamedTuple, TypeAlias

from .. import _clouds

__all__ = ["File", "Item", "Output", "write_all"]

_CHUNK_BYTES = 65536
#: Between two writings, so that many jobs go into one; longer where each takes the display away.
_PAUSE_S, _ASIDE_PAUSE_S = 0.02, 0.1


class File(NamedTuple):
    """A file whose content is to be written.

    Attributes:
        path: Where it is. One that is not there has no content.
        fd: The descriptor that it goes to.
    """

    path: str
    fd: int


#: Bytes for standard output, or files.
Item: TypeAlias = bytes | tuple[File, ...]


class Output:
    """Writes items, each whole before the next.

    Args:
        fd: Where bytes go.
        keep_order: Whether items are written by their numbers, which begin at 0 and have no gaps,
            and not as they come.
        failed: Called on the event loop, with the reason, when no more can be written.
        aside: Makes room for a moment, where the display is on the same terminal; None: it is not.
    """

    def __init__(
        self,
        fd: int,
        *,
        keep_order: bool,
        failed: Callable[[OSError], None],
        aside: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        #: Which files could not be read, and why.
        self.unread: list[str] = []
        self._fd = fd
        self._next = 0 if keep_order else None
        self._early: dict[int, Item] = {}
        self._failed = failed
        self._aside = aside or nullcontext
        self._pause_s = _ASIDE_PAUSE_S if aside else _PAUSE_S
        self._loop = asyncio.get_running_loop()
        self._items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._done = asyncio.Event()
        threading.Thread(target=self._run, name="xqute-output", daemon=True).start()

    def put(self, number: int, item: Item) -> None:
        """Have an item written in its turn."""
        if self._next is None:
            self._items.put(item)
            return
        self._early[number] = item
        while self._next in self._early:
            self._items.put(self._early.pop(self._next))
            self._next += 1

    async def close(self, last: Item = b"") -> None:
        """Return when all is written, what waited for its turn included, and at the end `last`."""
        for number in sorted(self._early):
            self._items.put(self._early.pop(number))
        self._items.put(last)
        self._items.put(None)
        await self._done.wait()

    def _run(self) -> None:
        try:
            ended = False
            while not ended:
                batch = [self._items.get()]
                with suppress(queue.Empty):
                    while batch[-1] is not None:
                        batch.append(self._items.get_nowait())
                ended = batch[-1] is None
                self._write([item for item in batch if item])
        except OSError as exc:
            self._tell(partial(self._failed, exc))
        finally:
            self._tell(self._done.set)

    def _tell(self, callback: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            self._loop.call_soon_threadsafe(callback)

    def _write(self, items: list[Item]) -> None:
        if not items:
            return
        with self._aside():
            waiting = bytearray()
            for item in items:
                if isinstance(item, bytes):
                    waiting += item
                    continue
                for file in item:
                    if file.fd != self._fd:
                        self._flush(waiting)
                    self._copy(file, waiting)
            self._flush(waiting)
        time.sleep(self._pause_s)

    def _copy(self, file: File, waiting: bytearray) -> None:
        """Write a file; small pieces for standard output only join those that wait."""
        if _clouds.is_far(file.path):
            self._copy_far(file, waiting)
            return
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as exc:
            self._is_unread(file, exc)
            return
        try:
            while chunk := self._read(fd, file):
                if file.fd != self._fd:
                    write_all(file.fd, chunk)
                    continue
                waiting += chunk
                if len(waiting) >= _CHUNK_BYTES:
                    self._flush(waiting)
        finally:
            os.close(fd)

    def _read(self, fd: int, file: File) -> bytes:
        try:
            return os.read(fd, _CHUNK_BYTES)
        except OSError as exc:  # no fault of who gets the output, and no other job's matter
            self._is_unread(file, exc)
            return b""

    def _is_unread(self, file: File, exc: OSError) -> None:
        self.unread.append(f"{file.path}: {exc.strerror}")

    def _copy_far(self, file: File, waiting: bytearray) -> None:
        try:
            data = _clouds.get(file.path) or b""
        except OSError as exc:
            self.unread.append(f"{file.path}: {exc}")
            return
        if file.fd == self._fd:
            waiting += data
        else:
            write_all(file.fd, data)

    def _flush(self, waiting: bytearray) -> None:
        data = bytes(waiting)
        waiting.clear()
        write_all(self._fd, data)


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however often that takes.

    Raises:
        OSError: If the other end is closed, the disk is full, ...
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
            select.select([], [fd], [])
