"""The event spool: one flat folder in which each change of a job is the name of an empty file."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
import sys
from collections.abc import Callable

from .. import _files
from .._protocol import Event, parse_event_name
from ..errors import WorkdirError
from ..utils import logger

__all__ = ["EventSpool"]

_IN_CREATE, _IN_MOVED_TO, _IN_Q_OVERFLOW = 0x100, 0x80, 0x4000
_HEADER = struct.Struct("iIII")


class EventSpool:
    """Tells of each event once, and removes its file.

    Writers on this machine are noticed at once, through inotify where there is one. Writers on
    other machines (and all, without inotify) by listings; each is made fresh by creating and
    removing a file first, since network file systems answer listings from a cache.

    Args:
        folder: Where the jobs leave events.
        tell: Called on the event loop for each event, in the order of arrival.
        list_interval_s: Seconds between two listings.
    """

    def __init__(
        self, folder: str, tell: Callable[[Event], None], list_interval_s: float = 1.0
    ) -> None:
        self._folder = folder
        self._tell = tell
        self._list_interval_s = list_interval_s
        self._inotify: int | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to watch; events that are there already are told, too.

        Raises:
            WorkdirError: If the folder cannot be made.
        """
        try:
            _files.make_dir(self._folder)
        except OSError as exc:
            raise WorkdirError(exc.errno, f"The workdir cannot be used: {exc}") from exc
        self._loop = asyncio.get_running_loop()
        self._inotify = _open_inotify(self._folder)
        if self._inotify is not None:
            self._loop.add_reader(self._inotify, self._on_inotify, self._inotify)
        self._list()

    async def stop(self) -> None:
        """Tell what is there to be told, and stop watching."""
        if self._loop is None:
            return
        self.look()
        if self._timer is not None:
            self._timer.cancel()
        if self._inotify is not None:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = None
        self._loop = None

    def look(self) -> None:
        """Make one fresh listing and tell what is in it."""
        _files.freshen(self._folder)
        try:
            names = os.listdir(self._folder)
        except OSError as exc:
            logger.warning("The event spool %s cannot be read: %s", self._folder, exc)
            return
        self._take(names)

    def _list(self) -> None:
        self.look()
        if self._loop is not None:
            self._timer = self._loop.call_later(self._list_interval_s, self._list)

    def _take(self, names: list[str]) -> None:
        events = sorted(
            (event.epoch_ms, name, event)
            for name in names
            if (event := parse_event_name(name)) is not None
        )
        for _, name, event in events:
            try:
                os.unlink(f"{self._folder}/{name}")
            except FileNotFoundError:
                continue  # told before: a listing and inotify may both have named it
            except OSError as exc:
                logger.debug("The event %s cannot be removed: %s", name, exc)
            self._tell(event)

    def _on_inotify(self, inotify: int) -> None:
        try:
            data = os.read(inotify, 65536)
        except BlockingIOError:
            return
        names = []
        offset = 0
        overflown = False
        while offset < len(data):
            _, mask, _, length = _HEADER.unpack_from(data, offset)
            offset += _HEADER.size
            names.append(data[offset : offset + length].rstrip(b"\0").decode("utf-8", "replace"))
            offset += length
            overflown = overflown or bool(mask & _IN_Q_OVERFLOW)
        self._take(names)
        if overflown:
            self.look()


def _open_inotify(folder: str) -> int | None:
    """Watch a folder for new names; None where that is not to be had."""
    if sys.platform != "linux":
        return None
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        _log_no_inotify(folder, ctypes.get_errno())
        return None
    if libc.inotify_add_watch(fd, os.fsencode(folder), _IN_CREATE | _IN_MOVED_TO) < 0:
        _log_no_inotify(folder, ctypes.get_errno())
        os.close(fd)
        return None
    return int(fd)


def _log_no_inotify(folder: str, number: int) -> None:
    words = errno.errorcode.get(number, str(number))
    logger.debug("No inotify for %s (%s): it is listed instead", folder, words)
