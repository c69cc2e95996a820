"""Putting things into words for people: commands, durations, counts. Pure."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

from .template import build_shell_command

__all__ = [
    "count",
    "describe_command",
    "describe_error",
    "duration",
    "plain_text",
    "rate",
    "shortened",
]

_BASH = build_shell_command("")[:2]
_OCTAL_WORD = re.compile(r"\$'((?:\\[0-7]{3}|[^'\\])*)'")
_OCTAL = re.compile(rb"\\([0-7]{3})")
_UNPRINTABLE = re.compile(r"[^\n\t -~\u00a0-\U0010ffff]|[\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain_text(text: str) -> str:
    """Give text that cannot steer a terminal: what is not printable is written as an escape."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shortened(text: str, width: int) -> str:
    """Give text as one line of at most `width` characters, with its end if it must be cut."""
    line = plain_text(" ".join(text.split()))
    if len(line) <= width:
        return line
    keep = (width - 1) // 2
    return f"{line[: width - 1 - keep]}…{line[len(line) - keep :]}"


def describe_command(argv: Sequence[str]) -> str:
    """Give a command as one would type it: a line for bash as that line, others quoted for it."""
    if tuple(argv[:-1]) == _BASH:
        return plain_text(_OCTAL_WORD.sub(_readable, argv[-1]))
    return plain_text(shlex.join(argv))


def describe_error(exc: BaseException) -> str:
    """Give what an error says, without the number that an OSError puts before it."""
    if isinstance(exc, OSError) and exc.strerror and exc.filename is None:
        return exc.strerror
    return str(exc)


def _readable(found: re.Match[str]) -> str:
    """Give a word with octal escapes as its text, if that can be seen."""
    raw = _OCTAL.sub(lambda octal: bytes([int(octal[1], 8) & 255]), os.fsencode(found[1]))
    text = os.fsdecode(raw)
    return shlex.quote(text) if text.isprintable() else found[0]


def duration(seconds: float) -> str:
    """Give a duration as people say it: 0.4 s, 12 s, 3:20 min, 2:05 h, 3 d 4 h."""
    minutes, s = divmod(round(seconds), 60)
    hours, min_ = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f"{days} d {h} h"
    if hours:
        return f"{h}:{min_:02} h"
    if minutes:
        return f"{min_}:{s:02} min"
    return f"{_short(seconds)} s"


def rate(per_s: float) -> str:
    """Give jobs per second: 0.3/s, 1,204/s."""
    return f"{_short(per_s)}/s"


def _short(number: float) -> str:
    return f"{number:,.{1 if number < 9.95 else 0}f}"  # noqa: PLR2004  # 9.95 is written 10


def count(n: int, one: str, many: str = "") -> str:
    """Give a number with its noun: 1 job, 2,143 jobs."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"
