"""Stopping a run by SIGINT and SIGTERM, and putting back the handlers that were there."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType

__all__ = ["StopSignals"]


class StopSignals:
    """While installed, SIGINT and SIGTERM call `stop` on the event loop.

    `loop.add_signal_handler` is no use here: removing it leaves the default action instead of what
    was there, asyncio.run's own SIGINT handling for one.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None]
    ) -> None:
        self._loop = loop
        self._stop = stop
        self._before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        """Take the signals over; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for sig in self.SIGNALS:
            self._before[sig] = signal.getsignal(sig)
            signal.signal(sig, self._handle)

    def restore(self) -> None:
        """Put back what was there, unless somebody else has taken a signal over meanwhile."""
        for sig, before in self._before.items():
            if signal.getsignal(sig) == self._handle:
                # None: the handler was not installed from Python, and cannot be put back.
                signal.signal(sig, signal.SIG_DFL if before is None else before)  # type: ignore[arg-type]
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stop, signal.Signals(number))
            return
        # The run was abandoned with its loop: step aside, for this signal and all later ones.
        self.restore()
        signal.raise_signal(number)
