"""What a job whose workdir is the server's own has written, and its way to the driver."""

from __future__ import annotations

import os

from xqute import logger

from .entry import MIRRORED, Entry
from .files import Files, FilesError
from .staging import mirror_end

__all__ = ["fetch_all", "follow"]


async def fetch_all(files: Files, entry: Entry) -> str:
    """Fetch outputs, logs and the end of an attempt that is over; give what went wrong, in words.

    Raises:
        LinkError: If the connection was lost: it is to be tried again.
    """
    problems = []
    async with entry.lock:
        for name in MIRRORED:
            if name in entry.unfinished:
                problems += await _catch_up(files, entry, name)
        for transfer in entry.outputs:
            try:
                await files.fetch(transfer)
            except FilesError as exc:
                problems.append(f"output {exc}")
        try:
            await files.in_thread(mirror_end, entry)
        except OSError as exc:
            problems.append(f"its files cannot be written here: {exc}")
    for problem in problems:
        logger.warning("ssh: %r: %s", entry.job, problem)
    return "; ".join(problems)


async def _catch_up(files: Files, entry: Entry, name: str) -> list[str]:
    """Fetch what there is more of a file than is here; if there is less, all of it anew."""
    remote, local, here = entry.remote(name), entry.local(name), entry.size(name)
    try:
        if await files.follow(remote, local, here) < here:
            os.truncate(local, await files.follow(remote, local, 0))
    except FilesError as exc:
        return [] if exc.missing else [str(exc)]
    except OSError as exc:
        return [f"{local}: {exc.strerror}"]
    return []


async def follow(files: Files, entry: Entry) -> None:
    """Bring the outputs of a running attempt up to date.

    Raises:
        FilesError: If one cannot be read.
        LinkError: If the connection is lost.
        OSError: If one cannot be written here.
    """
    for name in ("start", "stdout", "stderr"):
        await files.follow(entry.remote(name), entry.local(name), entry.size(name))
        if not entry.size("start"):
            return  # what is there may be of another attempt
