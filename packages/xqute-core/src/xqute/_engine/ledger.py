"""Reads journals back: what earlier runs have done with each job. Strict, and never surprised."""

from __future__ import annotations

import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from ..defaults import JobOutcome
from ..errors import WorkdirError
from ..utils import logger

__all__ = ["VERSION", "Entry", "Ledger", "encode"]

#: Of the format. A later one is refused, not guessed at.
VERSION = 1
#: How many lines are read at a time, so that other threads have their turn.
_LINES = 1000
_SEGMENT_NAME = r"([0-9]{6,12})-([0-9a-z]{1,32})\.jsonl"
_OUTCOMES: dict[Any, JobOutcome] = {outcome.value: outcome for outcome in JobOutcome}
_RUN_ID = re.compile(r"[0-9a-z]{1,32}").fullmatch


def encode(record: list[Any] | str, run_id: str = "") -> bytes:
    """Give the line of a record: its checksum, a space, its JSON.

    Args:
        record: The record, or its JSON.
        run_id: Whose segment it is for, which the checksum covers, so that a line that has come
            there from another does not count; none for a header.
    """
    text = record if isinstance(record, str) else json.dumps(record, separators=(",", ":"))
    body = text.encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(body, _seed(run_id)), body)


def _seed(run_id: str) -> int:
    return zlib.crc32(run_id.encode("ascii"))


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
        self._apply: dict[str, Callable[[list[Any]], None]] = {
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
        for match in sorted(matches, key=lambda match: (int(match[1]), match[2])):
            self.segments.append(f"{self._folder}/{match[0]}")
            self.last_number = int(match[1])
            self._run_id = match[2]
            with open(self.segments[-1], "rb") as file:
                lines = file.read().split(b"\n")
            self._take_header(lines[0])
            for record in _records(lines[1:], _seed(self._run_id)):
                self._take(record)

    def _take_header(self, line: bytes) -> None:
        """Apply the first line of a segment; of any version it is a list of kind, version, ..."""
        try:
            [(kind, version, *fields)] = _records([line], _seed(""))
            if kind == "h" and version != VERSION:
                raise WorkdirError(
                    f"The journal {self._folder} was written by another version of xqute: "
                    f"its format is {version!r}, this one reads {VERSION}"
                )
            run_id, key, host, pid, _boot, at = fields
            if kind != "h" or run_id != self._run_id:
                raise ValueError("it is not of this segment")
            bytes.fromhex(key)
            self.owners.append((run_id, str(host), _natural(pid), float(at)))
            self.digest_key = self.digest_key or key
        except (TypeError, ValueError, OverflowError) as exc:
            # Its run was killed, or the power failed, before it was there; or it came to harm.
            logger.debug("%s has no header (%r): %.200r", self.segments[-1], exc, line)

    def _take(self, record: Any) -> None:
        """Apply one record; one that makes no sense is passed over."""
        try:
            self._apply[record[0]](record)
        except (TypeError, ValueError, LookupError, OverflowError) as exc:
            logger.warning("A record of the journal makes no sense (%r): %.200r", exc, record)

    # --- the kinds of records, as `Journal` writes them ----------------------------------------

    def _on_sending(self, record: list[Any]) -> None:
        _, key, jobs = record
        sent = {}
        for position, (index, attempt, digest, *gpus) in enumerate(jobs):
            entry = Entry(self._run_id, _natural(attempt), _text(key), position, str(digest))
            if gpus:
                entry.gpus = tuple(map(str, gpus))
            sent[_natural(index)] = entry
        self.entries.update(sent)

    def _entry(self, index: int, attempt: int | str) -> Entry | None:
        """Give the entry that a record is about.

        None: of that attempt nothing is known. It was never announced, or that line came to harm;
        what is said of it must not be taken for news of another one.
        """
        entry = self.entries.get(index)
        if entry is None:
            return None
        is_own = entry.attempt == attempt and entry.run_id == self._run_id
        return entry if is_own or entry.tag == attempt else None

    def _on_id(self, record: list[Any]) -> None:
        _, index, attempt, jid = record
        if (entry := self._entry(index, attempt)) is not None:
            entry.jid = _jid(jid)

    def _on_kill(self, record: list[Any]) -> None:
        for entry in self._entries_of(record):
            entry.killed = True

    def _on_end(self, record: list[Any]) -> None:
        _, index, attempt, outcome, rc, cause, at = record
        if (entry := self._entry(index, attempt)) is not None:
            ended = (_OUTCOMES[outcome], int(rc), _text(cause), float(at))
            entry.outcome, entry.rc, entry.cause, entry.ended_at = ended

    def _on_hooked(self, record: list[Any]) -> None:
        for entry in self._entries_of(record):
            entry.hooked = True

    def _entries_of(self, record: list[Any]) -> list[Entry]:
        found = map(self._entry, record[1::2], record[2::2])
        return [entry for entry in found if entry is not None]

    def _on_copy(self, record: list[Any]) -> None:
        _, index, run_id, attempt, key, position, digest, *rest = record
        jid, killed, outcome, rc, cause, at, hooked, *gpus = rest
        if not _RUN_ID(run_id):
            raise ValueError("run id")
        entry = Entry(run_id, _natural(attempt), _text(key), _natural(position), str(digest))
        entry.jid = None if jid is None else _jid(jid)
        entry.killed, entry.hooked = bool(killed), bool(hooked)
        entry.gpus = tuple(map(str, gpus))
        entry.outcome = None if outcome is None else _OUTCOMES[outcome]
        entry.rc, entry.cause, entry.ended_at = int(rc), _text(cause), float(at)
        self.entries[_natural(index)] = entry

    # --- making many segments one --------------------------------------------------------------

    def compact(self) -> None:
        """Replace all segments by one that says the same. For the owner of the workdir only.

        Killed at any instant, it leaves a journal that says the same.

        Raises:
            OSError: If it cannot be written; then nothing is changed.
        """
        number, run_id = self.last_number + 1, self._run_id
        path = f"{self._folder}/{number:06d}-{run_id}.jsonl"
        part = f"{self._folder}/.part"
        header = ["h", VERSION, run_id, self.digest_key, "-", 0, "-", time.time()]
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(encode(header))
                file.writelines(encode(copy, run_id) for copy in self._copies())
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise
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


def _records(lines: list[bytes], seed: int) -> Iterator[Any]:
    """Give the records of all lines that are as they were written."""
    for start in range(0, len(lines), _LINES):
        bodies = [
            line[9:]
            for line in lines[start : start + _LINES]
            if line[:9] == b"%08x " % zlib.crc32(line[9:], seed)
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
