"""Small objects that are written behind the caller's back, so that nobody waits for the network."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Final

from . import put

__all__ = ["put_soon", "settle"]

#: How many are written at once.
_N_WRITERS: Final = 4

_guard = threading.Lock()
_writers: ThreadPoolExecutor | None = None
_unwritten: dict[str, Future[None]] = {}


def put_soon(uri: str, data: bytes) -> None:
    """Have an object written by a thread, after what was to be written there before.

    `settle` waits for it, and raises what went wrong.
    """
    global _writers  # noqa: PLW0603  # one for the process, made when it is needed
    with _guard:
        if _writers is None:
            _writers = ThreadPoolExecutor(_N_WRITERS, thread_name_prefix="xqute-put")
        before = _unwritten.get(uri)
        writing = _unwritten[uri] = _writers.submit(_put_after, before, uri, data)
    # Not under the guard: it may be called at once.
    writing.add_done_callback(partial(_forget, uri))


def _put_after(before: Future[None] | None, uri: str, data: bytes) -> None:
    if before is not None:
        wait([before])
    put(uri, data)


def _forget(uri: str, written: Future[None]) -> None:
    """Nobody has to wait for it any more; what went wrong is kept for `settle`."""
    with _guard:
        if _unwritten.get(uri) is written and written.exception() is None:
            del _unwritten[uri]


def settle(folder: str) -> None:
    """Return when all that `put_soon` was given for this folder is written.

    Raises:
        OSError: The first of what could not be.
    """
    with _guard:
        here = [uri for uri in _unwritten if uri.startswith(f"{folder}/")]
        writing = [_unwritten[uri] for uri in here]
    wait(writing)
    with _guard:
        for uri, future in zip(here, writing, strict=True):
            if _unwritten.get(uri) is future:
                del _unwritten[uri]
    for future in writing:
        future.result()
