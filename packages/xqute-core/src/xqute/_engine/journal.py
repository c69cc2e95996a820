"""Writes the journal: what a run sends to its backend and what comes of it, for who comes after.

One folder, ``<workdir>/.run/journal``, with one segment for each run that has owned the workdir,
``<number>-<run id>.jsonl``. A segment is only ever appended to, by its owner; everybody may read it
at any time. Each of its lines is a checksum and a JSON array, which begins with the kind of the
record:

    ["h", 1, run id, digest key, host, pid, boot id, epoch s]     the first line of a segment
    ["s", key, [[index, attempt, digest, gpu...], ...]]           these are about to be sent
    ["i", index, attempt, native id]                              the backend has accepted one
    ["k", index, attempt, ...]                                    these are about to be killed
    ["e", index, attempt, outcome, rc, cause, epoch s]            the attempt of one has ended
    ["d", index, attempt, ...]                                    their terminal hooks are done
    ["c", index, run id, attempt, ...]                            all of the above, of earlier runs

An attempt is told by its number, one that an earlier run has begun by ``"<run id>-<number>"``. The
checksum is the CRC-32 of the run id (of nothing, for the header) and the JSON, in hexadecimal.

What a record announces happens after it is written, so that SIGKILL loses nothing. A line that is
not as it was written (the disk was full, the power failed) counts as not written.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from json.encoder import encode_basestring_ascii
from typing import Any, Self

from .. import _files, _protocol
from ..defaults import JobOutcome
from ..errors import WorkdirError
from ..job import Job
from ..utils import logger
from .ledger import VERSION, Ledger, encode

__all__ = ["Journal"]

#: Seconds between two tries to write what the disk did not take, and until the last of them.
_RETRY_S, _GIVE_UP_S = 0.2, 30.0


class Journal:
    """The segment of one run.

    Records are gathered and written together: in the next turn of the event loop, or at once by
    `commit`. What the disk does not take is kept, and tried again until it does.

    Args:
        folder: The folder of all segments.
        run_id: Whose segment it is.
        ledger: What was read from the others.
        durable: Whether what is sent outlives this machine's power, so that the word of it must.
    """

    #: With so many segments of earlier runs, they are made one.
    most_segments = 4

    def __init__(self, folder: str, run_id: str, ledger: Ledger, *, durable: bool) -> None:
        self._loop = asyncio.get_running_loop()
        digest_key = ledger.digest_key or os.urandom(8).hex()
        self._digest_key = bytes.fromhex(digest_key)
        self._run_id = run_id
        self._parts: list[Any] | None = None
        self._digester: Any = None
        self._records: list[str] = []
        self._hooked: list[str] = []
        #: Jobs whose attempt was announced and has not ended.
        self._announced: set[int] = set()
        #: What is left of a group that the disk took a part of.
        self._rest = b""
        self._is_due = False
        self._is_failing = False
        self._is_durable = durable
        self._timer: asyncio.TimerHandle | None = None
        self._syncing: asyncio.Task[None] | None = None
        self._next_sync: asyncio.Task[None] | None = None
        self._syncer = ThreadPoolExecutor(1, "xqute-journal")
        self._path = f"{folder}/{ledger.last_number + 1:06d}-{run_id}.jsonl"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        me = (os.uname().nodename, os.getpid(), _protocol.boot_id(), round(time.time(), 3))
        self._rest = encode(["h", VERSION, run_id, digest_key, *me])
        self._wake()

    @classmethod
    async def open(cls, folder: str, run_id: str, *, durable: bool) -> tuple[Self, Ledger]:
        """Read what earlier runs have left, and begin a segment.

        Raises:
            WorkdirError: If it can be neither read nor written, or is of a later version.
        """
        try:
            _files.make_dir(folder)
            _files.freshen(folder)  # another machine may have added to it
            # In a thread: there may be a million jobs in it.
            ledger = await asyncio.to_thread(Ledger.read, folder)
            if len(ledger.segments) >= cls.most_segments:
                await asyncio.to_thread(_compact, ledger)
            return cls(folder, run_id, ledger, durable=durable), ledger
        except WorkdirError:
            raise
        except OSError as exc:
            raise WorkdirError(exc.errno, f"The journal cannot be used: {exc}") from exc

    # --- what is written -----------------------------------------------------------------------

    def digest(self, command: Iterable[str], parts: list[Any]) -> str:
        """Give a short keyed digest of a command, and of what else JSON can tell.

        The parts are mostly those of the job before: they are digested once.
        """
        if parts != self._parts:
            # Imported late: not needed to `import xqute`.
            from hashlib import blake2b

            text = json.dumps(parts).encode("ascii")
            self._parts = parts
            self._digester = blake2b(text, digest_size=8, key=self._digest_key)
        digester = self._digester.copy()
        digester.update(",".join(map(encode_basestring_ascii, command)).encode("ascii"))
        digest: str = digester.hexdigest()
        return digest

    def sending(self, key: str | None, jobs: Sequence[tuple[Job, str]]) -> OSError | None:
        """Write that jobs, each with its digest, are about to be sent.

        Args:
            key: The key of the submission; None: it is that of its only job.
            jobs: In the order of the submission.

        Returns:
            None: it is written. Otherwise they must not be sent.
        """
        sent = ",".join(
            [
                f'[{job.index},{job.trial_count},"{digest}"]'
                if not job.gpus
                else json.dumps([job.index, job.trial_count, digest, *job.gpus])
                for job, digest in jobs
            ]
        )
        self._announced.update([job.index for job, _ in jobs])
        self._add(f'["s",{json.dumps(key)},[{sent}]]')
        return self.commit()

    def accepted(self, job: Job, jid: int | str) -> None:
        """Write the native id of a job."""
        self._add(f'["i",{_attempt(job)},{json.dumps(jid)}]')

    def killing(self, jobs: Iterable[Job]) -> None:
        """Write that jobs are about to be killed, at once if the disk takes it."""
        attempts = ",".join(map(_attempt, jobs))
        if attempts:
            self._add(f'["k",{attempts}]')
            self.commit()

    def ended(self, job: Job) -> None:
        """Write how an attempt has ended, or what a plugin has made of it."""
        was_announced = job.index in self._announced
        self._announced.discard(job.index)
        if job.outcome is JobOutcome.CANCELLED and not was_announced and job.submitted_at is None:
            return  # what is known of earlier attempts still holds
        cause = json.dumps(job.cause)
        self._add(f'["e",{_attempt(job)},"{job.outcome}",{job.rc},{cause},{job.ended_at or 0:.3f}]')

    def hooked(self, job: Job) -> None:
        """Write that the terminal hooks of a job are done."""
        self._hooked.append(_attempt(job))
        self._wake()

    # --- how -----------------------------------------------------------------------------------

    def _add(self, record: str) -> None:
        self._records.append(record)
        self._wake()

    def _wake(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._write_due)

    def _write_due(self) -> None:
        self._is_due = False
        self.commit()

    def commit(self) -> OSError | None:
        """Write what there is to be written; None: all of it is (what survives SIGKILL)."""
        if self._hooked:
            self._records.append(f'["d",{",".join(self._hooked)}]')
            self._hooked = []
        if self._records:
            self._rest += b"".join([encode(record, self._run_id) for record in self._records])
            self._records = []
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except OSError as exc:
            if not self._is_failing:
                self._is_failing = True
                logger.warning("The journal cannot be written, and submissions wait: %s", exc)
            if self._timer is None:
                self._timer = self._loop.call_later(_RETRY_S, self._write_again)
            return exc
        if self._is_failing:
            self._is_failing = False
            logger.info("The journal is written again")
        return None

    def _write_again(self) -> None:
        self._timer = None
        self.commit()

    async def sync(self) -> None:
        """Return when all that was committed survives the loss of power, where that matters.

        Whoever asks while a sync is under way shares the next.

        Raises:
            OSError: If the disk fails.
        """
        if not self._is_durable:
            return
        if self._next_sync is None or self._next_sync.done():
            self._next_sync = self._loop.create_task(self._sync_after(self._syncing))
        await asyncio.shield(self._next_sync)

    async def _sync_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._syncing, self._next_sync = self._next_sync, None
        await self._loop.run_in_executor(self._syncer, self._persist)

    def _persist(self) -> None:
        """Have what was committed survive the loss of power; runs in the one thread for it."""
        os.fsync(self._fd)

    async def close(self) -> None:
        """Write all there is, and leave off."""
        until_s = self._loop.time() + _GIVE_UP_S
        while (exc := self.commit()) is not None:
            if self._loop.time() > until_s:
                logger.error("The journal could not be written, its last lines are lost: %s", exc)
                break
            await asyncio.sleep(_RETRY_S)
        if self._timer is not None:
            self._timer.cancel()
        self._is_due = True  # nothing is woken any more
        try:
            await self.sync()
        except OSError as exc:
            logger.warning("The journal cannot be synced: %s", exc)
        self._syncer.shutdown()
        os.close(self._fd)


def _attempt(job: Job) -> str:
    """Tell in JSON which attempt of which job: it may be one that an earlier run has begun."""
    if job.run_id is None:
        return f"{job.index},{job.trial_count}"
    return f'{job.index},"{job.run_id}-{job.trial_count}"'


def _compact(ledger: Ledger) -> None:
    try:
        ledger.compact()
    except OSError as exc:
        logger.warning("The journal stays in %d parts: %s", len(ledger.segments), exc)
