"""Attempts that the backend may start again: each start has an end of its own, the last one counts.

The first start to begin has the start claim that all attempts have, ``job.start.<tag>``; later ones
have ``job.start.<tag>.1`` and so on. Their ends are ``job.end.<tag>.0``, ``job.end.<tag>.1``, ... .
The end claim of the attempt, ``job.end.<tag>``, is the driver's to make, once the backend starts it
no more; whatever starts later finds it and does nothing.
"""

from __future__ import annotations

from .. import _protocol
from ..utils import logger

__all__ = ["read_last_end", "settle"]


def read_last_end(metadir: str, tag: str) -> _protocol.EndRecord | None:
    """Give how the last start of such an attempt has ended; None: it has not, or it is no such."""
    start = 0
    try:
        while _protocol.claim_exists(_protocol.start_claim_path(metadir, f"{tag}.{start + 1}")):
            start += 1
        return _protocol.read_end_record(metadir, f"{tag}.{start}")
    except OSError:
        return None


def settle(metadir: str, tag: str, last: _protocol.EndRecord) -> None:
    """Make the end of the last start that of the attempt."""
    try:
        _protocol.write_end(metadir, tag, *last)
    except OSError as exc:
        logger.warning("The end in %s cannot be written: %s", metadir, exc)
