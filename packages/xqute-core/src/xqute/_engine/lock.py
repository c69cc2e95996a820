"""One run owns a workdir: the lock, and who holds it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from typing import Protocol

from .. import _files
from ..errors import WorkdirError, WorkdirLockedError

__all__ = ["WorkdirLock"]


class _Owner(Protocol):
    def is_abandoned(self) -> bool: ...


class WorkdirLock:
    """An advisory lock on ``<workdir>/.run/lock``; the system drops it when its holder dies.

    The file stays, with the last holder's host, process and time in it, for the error message.
    """

    #: The holders of this process, so that one whose event loop is gone does not block the next.
    _held: dict[str, WorkdirLock] = {}  # noqa: RUF012  # one for the process, on purpose

    def __init__(self, run_dir: str, owner: _Owner) -> None:
        self._path = f"{run_dir}/lock"
        self._owner = owner
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            WorkdirLockedError: If another run has it; the message names that run.
            WorkdirError: If the workdir cannot be written.
        """
        key = os.path.realpath(self._path)
        holder = self._held.get(key)
        if holder is not None and holder._owner.is_abandoned():
            holder.release()
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise WorkdirError(exc.errno, f"The workdir cannot be used: {exc}") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            who = _files.read_text(self._path) or "an unknown process"
            workdir = os.path.dirname(os.path.dirname(self._path))
            raise WorkdirLockedError(
                f"Another run is at work in {workdir}: {who.strip()}"
            ) from None
        os.ftruncate(fd, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.write(fd, f"pid {os.getpid()} on {socket.gethostname()} since {since}\n".encode())
        self._fd = fd
        self._held[key] = self

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._fd is None:
            return
        os.close(self._fd)
        self._fd = None
        self._held.pop(os.path.realpath(self._path), None)
