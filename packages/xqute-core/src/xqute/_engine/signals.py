"""Stopping runs by SIGINT and SIGTERM, and putting back the handlers that were there."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import ClassVar

__all__ = ["StopSignals"]


class StopSignals:
    """While installed, SIGINT and SIGTERM call `stop` on the event loop.

    Several runs of one process hear them together: the first to install saves what was there, the
    last to leave puts it back. A process that is forked meanwhile has back at once what was there,
    and misses no signal before: whoever sent it one, and waits for its end, would wait for ever.

    `loop.add_signal_handler` is no use here: removing it leaves the default action, and
    asyncio.run's own handling of SIGINT is gone.

    Args:
        loop: The event loop of the run.
        stop: What to call there.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    _runs: ClassVar[list[StopSignals]] = []
    _before: ClassVar[dict[signal.Signals, object]] = {}
    #: What a thread that is about to fork has blocked.
    _forking: ClassVar[threading.local] = threading.local()

    def __init__(
        self, loop: asyncio.AbstractEventLoop, stop: Callable[[signal.Signals], None]
    ) -> None:
        self._loop = loop
        self._stop = stop

    def install(self) -> None:
        """Hear the signals from now on; does nothing outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for run in list(self._runs):
            if run._loop.is_closed():
                run.restore()  # it was abandoned with its event loop
        for sig in self.SIGNALS:
            before = signal.getsignal(sig)
            # Whoever started us in the background, or with nohup, wants it ignored. Who has taken
            # it over from another run of this process has it back when the last run leaves.
            if before not in (signal.SIG_IGN, _handle):
                self._before[sig] = before
                signal.signal(sig, _handle)
        self._runs.append(self)

    def restore(self) -> None:
        """Hear them no more; the last run puts back what was there."""
        if self not in self._runs:
            return
        self._runs.remove(self)
        if self._runs:
            return
        for sig, before in self._before.items():
            # Not if somebody else has taken the signal over meanwhile.
            if signal.getsignal(sig) is _handle:
                # None: the handler was not installed from Python, and cannot be put back.
                signal.signal(sig, signal.SIG_DFL if before is None else before)  # type: ignore[arg-type]
        self._before.clear()

    @classmethod
    def tell(cls, sig: signal.Signals) -> None:
        """Tell all runs of a signal; those that were abandoned with their event loop step aside."""
        for run in list(cls._runs):
            if run._loop.is_closed():
                run.restore()
            else:
                run._loop.call_soon_threadsafe(run._stop, sig)
        if not cls._runs:
            signal.raise_signal(sig)

    @classmethod
    def _before_fork(cls) -> None:
        if cls._runs:
            cls._forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, cls.SIGNALS)

    @classmethod
    def _after_fork(cls) -> None:
        mask = cls._forking.__dict__.pop("mask", None)
        if mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @classmethod
    def _forget_all(cls) -> None:
        for run in list(cls._runs):
            run.restore()
        cls._after_fork()


def _handle(number: int, _frame: FrameType | None) -> None:
    StopSignals.tell(signal.Signals(number))


os.register_at_fork(
    before=StopSignals._before_fork,
    after_in_parent=StopSignals._after_fork,
    after_in_child=StopSignals._forget_all,
)
