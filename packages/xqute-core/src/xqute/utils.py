"""The logger of xqute, and a type for commands."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from .defaults import LOGGER_NAME

__all__ = ["CommandType", "DuplicateFilter", "logger"]

#: A command: one string, split like a shell splits words, or the words themselves.
CommandType: TypeAlias = str | Sequence[object]


def __getattr__(name: str) -> Any:
    """Give rich's handler to whoever imports it from here, as programs do."""
    if name == "RichHandler":
        from rich.logging import RichHandler

        return RichHandler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class DuplicateFilter(logging.Filter):
    """Drops a record that is equal to the one before it."""

    def __init__(self, name: str = "") -> None:
        super().__init__(name)
        self._last: tuple[str, int, str] | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether `record` differs from the one before."""
        current = (record.module, record.levelno, record.getMessage())
        is_new = current != self._last
        self._last = current
        return is_new


class _LazyRichHandler(logging.Handler):
    """A `rich.logging.RichHandler`, made when the first record comes: rich is slow to import."""

    _rich: logging.Handler | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._rich is None:
            try:
                self._rich = _make_rich_handler()
            except (ImportError, OSError):
                # No descriptor is left to import it with, for one: plainly, this time.
                logging.StreamHandler().handle(record)
                return
        self._rich.handle(record)


def _make_rich_handler() -> logging.Handler:
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, omit_repeated_times=False)
    handler.setFormatter(logging.Formatter("%(message)s", datefmt="[%X]"))
    return handler


def _make_logger() -> logging.Logger:
    made = logging.getLogger(LOGGER_NAME)
    if not made.handlers:
        made.addHandler(_LazyRichHandler())
    level = os.environ.get("XQUTE_LOG_LEVEL", "INFO").upper()
    try:
        made.setLevel(level)
    except ValueError:
        made.setLevel("INFO")
        made.warning("XQUTE_LOG_LEVEL is no log level: %r", level)
    return made


logger = _make_logger()
