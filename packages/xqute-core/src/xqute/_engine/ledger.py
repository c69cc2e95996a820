"""Reads journals back: what earlier runs have done with each job. Strict, and never surprised."""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..defaults import JobOutcome
from ..errors import WorkdirError
from ..utils import logger

__all__ = ["VERSION", "Entry", "Ledger", "encode"]

#: Of the format. A later one is refused, not guessed at.
VERSION = 1
#: How many lines are read at a time, so that other threads have their turn.
_LINES = 1000
_SEGMENT_NAME = r"([0-9]{6,12})-[0-9a-z]+\.jsonl"
_RUN_ID = re.compile(r"[0-9a-z]{1,32}").fullmatch


def encode(record: list[Any] | str) -> bytes:
    """Give the line of a record: its checksum, a space, its JSON."""
    text = record if isinstance(record, str) else json.dumps(record, separators=(",", ":"))
    body = text.encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body), body)


class Entry:
    """What is known of the last attempt of one job.

    Attributes:
        run_id: The run that submitted it.
        attempt: Its number.
        key: The submission key; None: that of a job alone.
        position: Its place in the submission, from 0.
        digest: Of the command and all that it depends on.
        jid: The native id; None: no answer was recorded.
        killed: Whether its kill was intended.
        outcome: How it ended; None: that was not recorded. Likewise `rc`, `cause`, `ended_at`.
        hooked: Whether its terminal hooks are done.
        gpus: The graphics processors that it was given.
    """

    __slots__ = (
        "attempt",
        "cause",
        "digest",
        "ended_at",
        "gpus",
        "hooked",
        "jid",
        "key",
        "killed",
        "outcome",
        "position",
        "rc",
        "run_id",
    )

    def __init__(
        self, run_id: str, attempt: int, key: str | None, position: int, digest: str
    ) -> None:
        self.run_id = run_id
        self.attempt = attempt
        self.key = key
        self.position = position
        self.digest = digest
        self.jid: int | str | None = None
        self.killed = False
        self.outcome: JobOutcome | None = None
        self.rc = 0
        self.cause: str | None = None
        self.ended_at = 0.0
        self.hooked = False
        self.gpus: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """What the claims of the attempt are named after."""
        return f"{self.run_id}-{self.attempt}"


class Ledger:
    """The last attempt of each job of a workdir, as its journal tells.

    Attributes:
        entries: By index.
        segments: The files it was read from, oldest first.
        last_number: The number of the newest.
        digest_key: What digests are keyed with, in hexadecimal.
        owners: Who has written the segments, oldest first: run id, host, process id, start.
    """

    def __init__(self, folder: str) -> None:
        self.entries: dict[int, Entry] = {}
        self.segments: list[str] = []
        self.last_number = 0
        self.digest_key = ""
        self.owners: list[tuple[str, str, int, float]] = []
        self._folder = folder
        self._run_id = ""
        self._apply: dict[str, Callable[..., None]] = {
            "h": self._on_header,
            "s": self._on_sending,
            "i": self._on_id,
            "k": self._on_kill,
            "e": self._on_end,
            "d": self._on_hooked,
            "c": self._on_copy,
        }

    @classmethod
    def read(cls, folder: str) -> Ledger:
        """Read all segments; also while a run writes one, and while it replaces old ones.

        Raises:
            WorkdirError: If one was written by a later version.
            OSError: If one cannot be read.
        """
        for _ in range(10):
            ledger = cls(folder)
            try:
                ledger._read_all()
            except FileNotFoundError:
                continue  # it was replaced between our listing and our reading
            return ledger
        raise WorkdirError(f"The journal {folder} changes faster than it can be read")

    def _read_all(self) -> None:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return
        matches = [match for name in names if (match := re.fullmatch(_SEGMENT_NAME, name))]
        for match in sorted(matches, key=lambda match: int(match[1])):
            self.segments.append(f"{self._folder}/{match[0]}")
            self.last_number = int(match[1])
            with open(self.segments[-1], "rb") as file:
                lines = file.read().split(b"\n")
            self._run_id = ""
            for record in _records(lines):
                self._take(record)

    def _take(self, record: Any) -> None:
        """Apply one record; one that makes no sense is passed over."""
        try:
            kind, *fields = record
            if kind != "h" and not self._run_id:
                raise ValueError("no header")
            self._apply[kind](*fields)
        except WorkdirError:
            raise
        except (TypeError, ValueError, KeyError) as exc:
            logger.warning("A record of the journal makes no sense (%r): %.200r", exc, record)

    # --- the kinds of records, as `Journal` writes them ----------------------------------------

    def _on_header(
        self, version: int, run_id: str, key: str, host: str, pid: int, _boot: str, at: float
    ) -> None:
        if version != VERSION:
            raise WorkdirError(
                f"The journal {self._folder} was written by another version of xqute: "
                f"its format is {version!r}, this one reads {VERSION}"
            )
        if not _RUN_ID(run_id):
            raise ValueError("run id")
        bytes.fromhex(key)
        self._run_id = run_id
        self.digest_key = self.digest_key or key
        self.owners.append((run_id, str(host), int(pid), float(at)))

    def _on_sending(self, key: str | None, jobs: list[list[Any]]) -> None:
        for position, (index, attempt, digest, *gpus) in enumerate(jobs):
            entry = Entry(self._run_id, _natural(attempt), _text(key), position, str(digest))
            entry.gpus = tuple(map(str, gpus))
            self.entries[_natural(index)] = entry

    # What is said of a job that was never announced is of no use to anybody.

    def _on_id(self, index: int, jid: int | str) -> None:
        if (entry := self.entries.get(index)) is not None:
            entry.jid = _jid(jid)

    def _on_kill(self, indices: list[int]) -> None:
        for index in indices:
            if (entry := self.entries.get(index)) is not None:
                entry.killed = True

    def _on_end(self, index: int, outcome: str, rc: int, cause: str | None, at: float) -> None:
        if (entry := self.entries.get(index)) is not None:
            ended = (JobOutcome(outcome), int(rc), _text(cause), float(at))
            entry.outcome, entry.rc, entry.cause, entry.ended_at = ended

    def _on_hooked(self, indices: list[int]) -> None:
        for index in indices:
            if (entry := self.entries.get(index)) is not None:
                entry.hooked = True

    def _on_copy(self, index: int, *fields: Any) -> None:
        run_id, attempt, key, position, digest, *rest = fields
        jid, killed, outcome, rc, cause, at, hooked, *gpus = rest
        if not _RUN_ID(run_id):
            raise ValueError("run id")
        entry = Entry(run_id, _natural(attempt), _text(key), _natural(position), str(digest))
        entry.jid = None if jid is None else _jid(jid)
        entry.killed, entry.hooked = bool(killed), bool(hooked)
        entry.gpus = tuple(map(str, gpus))
        entry.outcome = None if outcome is None else JobOutcome(outcome)
        entry.rc, entry.cause, entry.ended_at = int(rc), _text(cause), float(at)
        self.entries[_natural(index)] = entry

    # --- making many segments one --------------------------------------------------------------

    def compact(self) -> None:
        """Replace all segments by one that says the same. For the owner of the workdir only.

        Raises:
            OSError: If it cannot be written; then nothing is changed.
        """
        number = self.last_number + 1
        path = f"{self._folder}/{number:06d}-{self._run_id or '0'}.jsonl"
        part = f"{self._folder}/.part"
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            header = ["h", VERSION, self._run_id or "0", self.digest_key, "-", 0, "-", time.time()]
            file.write(encode(header))
            file.writelines(map(encode, self._copies()))
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        for segment in self.segments:
            os.unlink(segment)
        self.segments, self.last_number = [path], number

    def _copies(self) -> Iterator[list[Any]]:
        for index, entry in self.entries.items():
            yield [
                "c",
                index,
                entry.run_id,
                entry.attempt,
                entry.key,
                entry.position,
                entry.digest,
                entry.jid,
                int(entry.killed),
                entry.outcome,
                entry.rc,
                entry.cause,
                entry.ended_at,
                int(entry.hooked),
                *entry.gpus,
            ]


def _records(lines: list[bytes]) -> Iterator[Any]:
    """Give the records of all lines that are as they were written."""
    for start in range(0, len(lines), _LINES):
        bodies = [
            line[9:]
            for line in lines[start : start + _LINES]
            if line[:9] == b"%08x " % zlib.crc32(line[9:])
        ]
        # At once, which is three times as fast; the checksums say that each is whole.
        try:
            yield from json.loads(b"[%s]" % b",".join(bodies))
        except (ValueError, RecursionError):
            yield from _one_by_one(bodies)


def _one_by_one(bodies: Iterable[bytes]) -> Iterator[Any]:
    for body in bodies:
        try:
            yield json.loads(body)
        except (ValueError, RecursionError) as exc:
            logger.warning("A line of the journal is no JSON (%s): %.200r", exc, body)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"not a whole number from 0: {value!r}")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"not text: {value!r}")
    return value


def _jid(value: Any) -> int | str:
    if type(value) is int or (isinstance(value, str) and value):
        return value
    raise ValueError(f"not a native id: {value!r}")
