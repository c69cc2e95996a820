"""The journal of a workdir that is in a cloud: written here, and uploaded as immutable parts."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from .. import _clouds, _files
from .._clouds.staging import local_place
from ..utils import logger
from .journal import Journal
from .ledger import Ledger

__all__ = ["FarJournal", "read_journal"]

#: Seconds until what nobody waits for is uploaded.
_UPLOAD_S = 2.0
#: Parts that are read at once.
_READERS = 16
#: A segment that is whole, or the part of one that begins at this byte.
_WHOLE, _PART = r"([0-9]{6,12}-[0-9a-z]+\.jsonl)", r"([0-9]{6,12}-[0-9a-z]+\.jsonl)\.([0-9]{12})"


class FarJournal(Journal):
    """Written into a folder of this machine first; `sync` uploads what is new as one more object.

    So what is about to be sent is in the bucket before it is sent. The rest follows within two
    seconds; a driver that is started on this machine again misses none of it.
    """

    #: Each costs a request when it is read, and those of the bucket are not made one.
    most_segments = 1_000_000
    _folder = ""
    _n_uploaded = 0
    _upload: asyncio.TimerHandle | None = None
    _uploading: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls,
        folder: str,
        run_id: str,
        *,
        durable: bool,  # noqa: ARG003  # what is in a cloud is
    ) -> tuple[Self, Ledger]:
        """Read what earlier runs have left, and begin a segment.

        Raises:
            WorkdirError: If it can be neither read nor written, or is of a later version.
        """
        cache = _cache_of(folder)
        await asyncio.to_thread(_fetch, folder, cache)
        journal, ledger = await super().open(cache, run_id, durable=True)
        journal._folder = folder
        journal.commit()
        await journal.sync()
        return journal, ledger

    def commit(self) -> OSError | None:
        """Write what there is to be written here, and have it uploaded soon."""
        exc = super().commit()
        if self._folder and self._upload is None:
            self._upload = self._loop.call_later(_UPLOAD_S, self._upload_now)
        return exc

    def _upload_now(self) -> None:
        self._upload = None
        self._uploading = self._loop.create_task(self._sync_and_tell())

    async def _sync_and_tell(self) -> None:
        try:
            await self.sync()
        except OSError as exc:
            logger.warning("The journal cannot be uploaded yet: %s", exc)

    def _persist(self) -> None:
        if self._folder:
            with open(self._path, "rb") as file:
                file.seek(self._n_uploaded)
                data = file.read()
            if data:
                _clouds.put(f"{self._uri}.{self._n_uploaded:012d}", data)
                self._n_uploaded += len(data)

    @property
    def _uri(self) -> str:
        return f"{self._folder}/{os.path.basename(self._path)}"

    async def close(self) -> None:
        """Write and upload all there is, as one object, and leave off."""
        if self._upload is not None:
            self._upload.cancel()
        if self._uploading is not None:
            await asyncio.wait([self._uploading])
        await super().close()
        if self._upload is not None:
            self._upload.cancel()
        try:
            await asyncio.to_thread(self._make_whole)
        except OSError as exc:
            logger.warning("The parts of the journal stay: %s", exc)
        else:
            # What is here is in the bucket.
            shutil.rmtree(os.path.dirname(os.path.dirname(self._path)), ignore_errors=True)

    def _make_whole(self) -> None:
        _clouds.put(self._uri, Path(self._path).read_bytes())
        name = os.path.basename(self._path)
        parts = [part for part in _clouds.names(self._folder) if part.startswith(f"{name}.")]
        _clouds.delete([f"{self._folder}/{part}" for part in parts])


def read_journal(folder: str) -> Ledger:
    """Give what runs have left in a journal's folder, here or in a cloud. Blocks.

    Raises:
        WorkdirError: If it was written by a later version.
        OSError: If it cannot be read.
    """
    if not _clouds.is_far(folder):
        return Ledger.read(folder)
    with tempfile.TemporaryDirectory(prefix="xqute-") as copy:
        _fetch(folder, copy)
        return Ledger.read(copy)


def _cache_of(folder: str) -> str:
    """Give the folder of this machine for the journal of a cloud's folder."""
    return f"{local_place(folder)}/journal"


def _fetch(folder: str, cache: str) -> None:
    """Make the segments in `cache` those of the bucket; one that is longer here is kept."""
    _files.make_dir(cache)
    names = _clouds.names(folder)
    whole = {match[1] for name in names if (match := re.fullmatch(_WHOLE, name))}
    parts: dict[str, list[int]] = {}
    for name in names:
        if match := re.fullmatch(_PART, name):
            parts.setdefault(match[1], []).append(int(match[2]))
    for name in os.listdir(cache):
        # The bucket's folder was removed, and with it the run that this tells of.
        if name not in whole and name not in parts:
            _files.remove(f"{cache}/{name}")
    with ThreadPoolExecutor(_READERS, "xqute-journal") as pool:
        for name in sorted(whole | parts.keys()):
            if name in whole:
                data = _clouds.get(f"{folder}/{name}") or b""
            else:
                offsets = sorted(parts[name])
                uris = [f"{folder}/{name}.{offset:012d}" for offset in offsets]
                data = _join(offsets, pool.map(_clouds.get, uris))
            path = Path(cache, name)
            if not path.exists() or path.stat().st_size < len(data):
                path.write_bytes(data)


def _join(offsets: list[int], contents: Iterable[bytes | None]) -> bytes:
    """Put parts together up to the first that is missing."""
    data = b""
    for offset, content in zip(offsets, contents, strict=True):
        if content is None or offset != len(data):
            break
        data += content
    return data
