"""What a person is told while a run goes on: a live line on a terminal, a plain one elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

from ..utils import logger
from .words import duration, plain_text, rate, shortened

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "Snapshot", "make_display"]

#: A live display is drawn as often as people can see.
_FRAME_S = 0.1
#: Between two lines where there is no terminal.
_LINE_S = 30.0
#: The rate is that of the last seconds.
_RATE_OVER_S = 15.0
#: Widths in characters: of a terminal that tells none, the bar, and what is left for the command.
_WIDTH, _LEAST_BAR, _MOST_BAR, _LEAST_TITLE = 80, 10, 30, 12


class Snapshot(NamedTuple):
    """Where a run is.

    Attributes:
        n_known: How many jobs there are.
        is_complete: Whether there are no more.
        n_running: How many run.
        n_pending: How many the backend has and has not begun.
        n_done: How many have ended for good, having begun.
        n_failed: How many of these have failed.
        is_stopping: Whether the run is being stopped.
    """

    n_known: int
    is_complete: bool
    n_running: int
    n_pending: int
    n_done: int
    n_failed: int
    is_stopping: bool


class Pace:
    """How fast jobs end: of the last seconds, so that a change is soon seen."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def mark(self, n_done: int) -> None:
        """Note how many are done by now."""
        now_s = self._clock()
        while len(self._marks) > 1 and self._marks[1][0] < now_s - _RATE_OVER_S:
            self._marks.popleft()
        self._marks.append((now_s, n_done))

    @property
    def per_s(self) -> float:
        """Jobs per second; 0: not known yet."""
        (first_s, first), (last_s, last) = self._marks[0], self._marks[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0

    def left_s(self, snapshot: Snapshot) -> float | None:
        """Seconds until all have ended, if it goes on like this; None: nobody knows."""
        if not snapshot.is_complete or not self.per_s:
            return None
        return (snapshot.n_known - snapshot.n_done) / self.per_s


class Display:
    """Says nothing but what must be said. The base of the others."""

    #: Seconds between two looks at where the run is; None: there is no need to look.
    pause_s: float | None = None

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    @property
    def console(self) -> Console:
        """The terminal, or whatever standard error is."""
        if self._console is None:
            from rich.console import Console

            self._console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
            if not self._console.width:  # COLUMNS=0: there would be room for nothing
                self._console.width = _WIDTH
        return self._console

    def say(self, text: str, style: str = "") -> None:
        """Tell a line, or some."""
        with suppress(OSError):  # standard error is closed: there is nobody to tell
            self.console.print(plain_text(text), style=style or None)

    def show(self, snapshot: Snapshot) -> None:
        """Show where the run is."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Make room on the terminal while others write to it. May be entered from any thread."""
        yield

    def close(self) -> None:
        """Show nothing any more."""


class PlainDisplay(Display):
    """A line every half minute."""

    pause_s = _LINE_S

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._pace = Pace()

    def show(self, snapshot: Snapshot) -> None:
        """Tell it in a line."""
        self._pace.mark(snapshot.n_done)
        self.say(", ".join(text for text, _ in describe(snapshot, self._pace)))


class LiveDisplay(Display):
    """One line at the bottom of a terminal, drawn anew while the run goes on.

    Args:
        title: What runs.
    """

    pause_s = _FRAME_S

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(console)
        from rich.live import Live

        self._title = title
        self._pace = Pace()
        self._snapshot: Snapshot | None = None
        self._lock = threading.Lock()
        self._live = Live(
            console=self.console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def say(self, text: str, style: str = "") -> None:
        """Tell a line, or some, above the live one."""
        with self._lock:
            super().say(text, style)

    def show(self, snapshot: Snapshot) -> None:
        """Draw the line, unless somebody else is writing to the terminal."""
        self._pace.mark(snapshot.n_done)
        self._snapshot = snapshot
        # A writer may be held up there (Ctrl-S); the run must not.
        if self._lock.acquire(blocking=False):
            try:
                self._draw()
            finally:
                self._lock.release()

    def _draw(self) -> None:
        if self._snapshot is None:
            return
        with suppress(OSError):  # the terminal is gone: there is nobody to show it to
            if not self._live.is_started:
                self._live.start()
            self._live.update(self._render(self._snapshot), refresh=True)

    def _render(self, snapshot: Snapshot) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        counts = Text(overflow="ellipsis", no_wrap=True)
        for text, style in describe(snapshot, self._pace):
            counts.append("  " if counts else "").append(text, style)
        room = self.console.width - len(counts) - 2
        parts: list[RenderableType] = [counts]
        if room >= _LEAST_BAR:
            total = snapshot.n_known if snapshot.is_complete else None
            bar = min(_MOST_BAR, room)
            parts.insert(0, ProgressBar(total, snapshot.n_done, width=bar))
            if room - bar > _LEAST_TITLE:
                parts.append(Text(shortened(self._title, room - bar - 2), "dim", no_wrap=True))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(*parts)
        return line

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the line away, let others write, and put it back."""
        with self._lock:
            with suppress(OSError):
                self._live.stop()
            yield
            self._draw()

    def close(self) -> None:
        """Take the line away for good."""
        self._snapshot = None
        with self._lock, suppress(OSError):
            self._live.stop()


def describe(snapshot: Snapshot, pace: Pace) -> list[tuple[str, str]]:
    """Put where a run is into words, each with a style."""
    known = f"{snapshot.n_known:,}{'' if snapshot.is_complete else '+'}"
    words = [(f"{snapshot.n_done:,}/{known}", "bold")]
    if snapshot.is_stopping:
        words.append(("stopping", "yellow"))
    words.append((f"{snapshot.n_running:,} running", "cyan"))
    if snapshot.n_pending:
        words.append((f"{snapshot.n_pending:,} pending", ""))
    if snapshot.n_failed:
        words.append((f"{snapshot.n_failed:,} failed", "red"))
    if pace.per_s and not snapshot.is_stopping:
        words.append((rate(pace.per_s), ""))
        left_s = pace.left_s(snapshot)
        if left_s is not None:
            words.append((f"{duration(left_s)} left", "green"))
    return words


class _Talk(logging.Handler):
    """Tells the records of xqute's logger on the display."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        style = "red" if record.levelno >= logging.ERROR else "yellow"
        self._display.say(self.format(record), style if record.levelno > logging.INFO else "")


def make_display(title: str, *, quiet: bool, progress: bool) -> Display:
    """Choose a display for what standard error is, and have the logger talk through it."""
    display = Display()
    if progress and not quiet:
        live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        display = LiveDisplay(title) if live else PlainDisplay()
    logger.handlers[:] = [_Talk(display)]
    return display
