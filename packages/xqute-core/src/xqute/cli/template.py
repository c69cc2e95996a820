"""Command templates: where the arguments go, and the command that comes of it.

A template of one word is a shell command line, in which each argument becomes exactly one word,
whatever it holds; where the place stands between quotes, it becomes a part of that word. A template
of several words is the command itself, without a shell.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from enum import Enum, auto
from functools import cache
from typing import NamedTuple, Protocol

from ..defaults import JOBCMD_WRAPPER_LANG
from ..wrapper import quote

__all__ = [
    "Template",
    "TemplateError",
    "build_shell_command",
    "check_syntax",
    "parse_template",
    "plain_words",
    "run_bash",
]

#: `{}`, `{1}`; but `${1}` is the shell's.
_PLACE = re.compile(r"(?<!\$)\{(\d*)\}")
#: A line of such characters has the same words for bash as for `str.split`.
_PLAIN_LINE = re.compile(r"[A-Za-z0-9_./:@+,=\- \t]+")
#: Variables that make a bash do more than its command line says.
_MEDDLERS = ("BASH_ENV", "BASHOPTS", "SHELLOPTS")


class TemplateError(ValueError):
    """A template that does not say where its arguments go; the message tells what to do."""


class Template(Protocol):
    """Makes commands of arguments."""

    def build(self, values: Sequence[str]) -> tuple[str, ...]:
        """Give the command for these values, one for each group of arguments."""


class _Spot(Enum):
    """What a character stands in, as the shell reads it."""

    CODE = auto()
    DOUBLE_QUOTES = auto()
    SINGLE_QUOTES = auto()
    #: After a backslash.
    ESCAPED = auto()
    #: Where no quoting is right for every value.
    UNCLEAR = auto()


class _Place(NamedTuple):
    number: int | None  # of the group, from 0; None: all
    spot: _Spot

    def fill(self, values: Sequence[str]) -> str:
        chosen = values if self.number is None else (values[self.number],)
        if self.spot is _Spot.DOUBLE_QUOTES:
            return f'"{quote(" ".join(chosen))}"'
        if self.spot is _Spot.SINGLE_QUOTES:
            return f"'{quote(' '.join(chosen))}'"
        return " ".join(map(quote, chosen))


class _ShellTemplate:
    """A shell command line, cut at its places."""

    def __init__(self, pieces: Sequence[str | _Place]) -> None:
        self._pieces = tuple(pieces)

    def build(self, values: Sequence[str]) -> tuple[str, ...]:
        return build_shell_command(
            "".join(
                piece if isinstance(piece, str) else piece.fill(values) for piece in self._pieces
            )
        )


class _WordsTemplate:
    """The words of a command; a word that is a place alone becomes one word for each value."""

    def __init__(self, words: Sequence[str], place: re.Pattern[str]) -> None:
        self._place = place
        self._words = tuple(words)

    def build(self, values: Sequence[str]) -> tuple[str, ...]:
        def fill(found: re.Match[str]) -> str:
            number = _number(found)
            return " ".join(values) if number is None else values[number]

        command: list[str] = []
        for word in self._words:
            whole = self._place.fullmatch(word)
            if whole is not None and _number(whole) is None:
                command += values
            else:
                command.append(self._place.sub(fill, word))
        return tuple(command)


def build_shell_command(line: str) -> tuple[str, ...]:
    """Give the command that has bash run a line."""
    return (JOBCMD_WRAPPER_LANG, "-c", line)


def parse_template(
    words: Sequence[str], n_groups: int, *, replaced: str = "", direct: bool = False
) -> Template:
    """Understand a template; where it has no place, the argument becomes the last word.

    Args:
        words: One shell command line, or the words of a command.
        n_groups: How many values there are for each command.
        replaced: The text that is replaced by the argument; empty: `{}`, or `{1}`, `{2}`, ...
        direct: Whether a line of plain words may be run without a shell, see `plain_words`.

    Raises:
        TemplateError: If a value could not become exactly one word, or a number has no group.
    """
    place = re.compile(f"{re.escape(replaced)}()") if replaced else _PLACE
    last = replaced or "{}"
    for found in place.finditer(" ".join(words)):
        number = _number(found)
        if number is not None and not 0 <= number < n_groups:
            raise TemplateError(f"{found[0]} is used, but groups of arguments: {n_groups}")
    if len(words) > 1:
        return _WordsTemplate(words if any(map(place.search, words)) else [*words, last], place)
    line = words[0]
    pieces = _cut(line, place)
    if not any(isinstance(piece, _Place) for piece in pieces):
        line = f"{line} {last}"
        pieces = _cut(line, place)
    first, *others = line.split()
    if direct and n_groups == 1 and others and not place.search(first) and last.split() == [last]:
        plain = plain_words(place.sub("x", line))
        if plain is not None:
            return _WordsTemplate([first, *others], place)
    return _ShellTemplate(pieces)


def plain_words(line: str) -> tuple[str, ...] | None:
    """Give the words of a line that needs no shell: run directly it does exactly the same.

    So it is if the line has no character that is special to bash, its first word is a program (bash
    itself is asked: no keyword, assignment, function, built-in command), and nothing in the
    environment makes bash do more than the line says. What differs are `SHLVL` and `_` in the
    command's environment. None: it needs a shell, or it may.
    """
    if not _PLAIN_LINE.fullmatch(line) or any(map(os.environ.__contains__, _MEDDLERS)):
        return None
    words = tuple(line.split())
    return words if words and _is_program(words[0]) else None


@cache
def _is_program(name: str) -> bool:
    if "/" in name:
        return "=" not in name and f"BASH_FUNC_{name}%%" not in os.environ
    return run_bash('type -t -- "$1"', name).stdout == "file\n"


def check_syntax(command: Sequence[str]) -> None:
    """Have bash read a shell command without running it.

    Raises:
        TemplateError: With bash's words, if it is not well-formed.
    """
    if command[:2] != build_shell_command("")[:2] or "shopt" in command[2]:
        return  # no shell, or one whose syntax the line itself changes
    done = run_bash(command[2], options=("-n",))
    if done.returncode != 0:
        raise TemplateError(done.stderr.strip() or "bash does not accept its syntax")


def run_bash(
    code: str, *arguments: str, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Have bash run a few lines that take no time, and give what it says."""
    return subprocess.run(
        [JOBCMD_WRAPPER_LANG, *options, "-c", code, "bash", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=10,
        check=False,
    )


def _number(found: re.Match[str]) -> int | None:
    return int(found[1]) - 1 if found[1] else None


def _cut(line: str, place: re.Pattern[str]) -> list[str | _Place]:
    """Cut a shell command line at its places, each with the quotes that it stands in."""
    spots = _find_spots(line)
    pieces: list[str | _Place] = []
    end = 0
    for found in place.finditer(line):
        spot = spots[found.start()]
        if spot is _Spot.ESCAPED:
            continue  # not a place, but its text
        if spot is _Spot.UNCLEAR:
            raise TemplateError(
                f"{found[0]} stands where no quoting keeps every value whole, after: "
                f"{line[: found.start()]}\nName the value first, and use the name: "
                f'x={found[0]}; ... "$x" ...'
            )
        pieces += (line[end : found.start()], _Place(_number(found), spot))
        end = found.end()
    return [*pieces, line[end:]]


_CLOSERS = {'"': '"', "`": "`", "$((": "))", "((": "))", "$(": ")", "(": ")", "${": "}"}
_IN_CODE = re.compile(
    r"""(?P<escaped>\\.) | (?P<single>'[^']*') | (?P<unclear>\$'(?:\\.|[^\\'])*')
    | (?P<stray>\$?') | (?P<opens>"|`|\$\(\(|\(\(|\$\(|\$\{|\()
    | (?P<comment>(?<![^\s;&|()])\#[^\n]*) | (?P<case>\bcase\b)
    | (?P<here_string><<<) | (?P<here_document><<) | .""",
    re.VERBOSE | re.DOTALL,
)
_IN_QUOTES = re.compile(r"(?P<escaped>\\.)|(?P<opens>`|\$\(\(|\$\(|\$\{)|.", re.DOTALL)


def _find_spots(line: str) -> list[_Spot]:
    """Tell for each character of a line of bash what it stands in.

    Knows quotes, substitutions and nesting. Where it is not sure of every value, it is UNCLEAR: in
    comments, backquotes, parameter expansions, arithmetic, after the mark of a here-document, and
    after a `case` within a substitution, whose patterns end with the bracket that ends the latter.

    Raises:
        TemplateError: If a quote or a bracket is not closed.
    """
    spots: list[_Spot] = []
    open_: list[str] = []  # by what closes it
    lost = False
    while (i := len(spots)) < len(line):
        if open_ and line.startswith(open_[-1], i):
            spots += [_Spot.CODE] * len(open_.pop())
            continue
        # Within "${x:-...}" single quotes are text, as they are within the quotes around it.
        quoted = next((closer for closer in reversed(open_) if closer != "}"), "") == '"'
        found = (_IN_QUOTES if quoted else _IN_CODE).match(line, i)
        assert found is not None  # noqa: S101  # both end with `.`
        kind, text = found.lastgroup, found[0]
        if kind == "stray":
            raise TemplateError(f"a ' is not closed: {line[i:]}")
        if kind == "opens":
            open_.append(_CLOSERS[text])
        lost = lost or kind == "here_document" or (kind == "case" and bool(open_))
        if lost or kind in ("unclear", "comment") or not {"}", "))", "`"}.isdisjoint(open_):
            spot = _Spot.UNCLEAR
        elif kind == "single":
            spot = _Spot.SINGLE_QUOTES
        else:
            spot = _Spot.DOUBLE_QUOTES if quoted else _Spot.CODE
        spots += [spot] * len(text)
        if kind == "escaped":
            spots[-1] = _Spot.ESCAPED
    if open_:
        raise TemplateError(f"a {open_[-1]} is missing: {line}")
    return spots
