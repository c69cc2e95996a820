"""What is said to the agent of a server: bash words, calls and frames. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import cache, partial
from importlib import resources

__all__ = [
    "build_agent",
    "build_bootstrap",
    "build_call",
    "build_frame",
    "build_pass",
    "build_puts",
    "quote",
]

_NEEDS_OCTAL = re.compile(rb"[^\t\n -&(-\[\]-~]")
#: In a format of `printf`, that is: also what means something there.
_FORMAT_NEEDS_OCTAL = re.compile(rb"[^ -$&(-\[\]-~]")
#: How much of a file goes in one call.
_PUT_BYTES = 16384


def quote(text: str | bytes) -> str:
    """Give one bash word that stands for exactly these bytes, itself ASCII.

    Raises:
        ValueError: For a NUL, which no word can hold.
    """
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError("a NUL cannot be said in bash")
    if _NEEDS_OCTAL.search(data) is None:
        return f"'{data.decode()}'"
    return f"$'{_NEEDS_OCTAL.sub(_octal, data).decode()}'"


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def build_call(function: str, *words: object) -> str:
    """Give the call of a function of the agent."""
    return " ".join([f"xq_{function}", *(quote(str(word)) for word in words)])


def build_pass(lane: int, code: str) -> str:
    """Give what has the agent's shell of that number run a piece of code."""
    return f">{lane} {code}"


def build_frame(code: str) -> bytes:
    """Give what goes over the wire for a piece of code."""
    data = code.encode("ascii")
    return b"%08d%b" % (len(data), data)


def build_bootstrap(marker: str) -> str:
    """Give the command that says the marker, reads the agent from its stdin, and becomes it.

    It passes through whatever shell the user has there, csh and fish included: so there is no
    quote, backslash, newline or exclamation mark within its quotes.
    """
    return (
        f"exec bash -p -c 'echo; echo {marker} $BASH_VERSION; "
        'IFS= read -r -N 8 n && IFS= read -r -N "$((10#$n))" c && eval "$c"'
        "'"
    )


@cache
def build_agent() -> bytes:
    """Give the frame with the agent, without its comments."""
    text = resources.files(__package__).joinpath("agent.sh").read_text("ascii")
    lines = map(str.strip, text.splitlines())
    return build_frame("\n".join(line for line in lines if line and not line.startswith("#")))


def build_puts(path: str, data: bytes) -> Iterator[Callable[[int], str]]:
    """Give the calls that write a file, piece by piece; each is to be given a question's number."""
    for at in range(0, max(len(data), 1), _PUT_BYTES):
        piece = _FORMAT_NEEDS_OCTAL.sub(_octal, data[at : at + _PUT_BYTES]).decode()
        yield partial(_build_put, path, at, piece)


def _build_put(path: str, at: int, piece: str, number: int) -> str:
    return f"xq_put {number} {quote(path)} {at} '{piece}'"
