"""One run owns a workdir: taking it for a run, keeping it while the run lasts, giving it back."""

from __future__ import annotations

import asyncio
import os
from typing import Protocol

from .. import _files
from .._ownership import BEAT_S, Ownership
from ..errors import WorkdirError, WorkdirLockedError
from ..utils import logger

__all__ = ["WorkdirLock"]


class _Owner(Protocol):
    def is_abandoned(self) -> bool:
        """Whether its event loop is gone, so that it can never end by itself."""

    def on_workdir_lost(self) -> None:
        """Hear that another run has taken the workdir over."""


class WorkdirLock:
    """Makes a run the owner of a workdir; see `_ownership` for what that is worth where.

    A process that is forked while a run is at work does not own its workdir, whatever it closes.

    Args:
        run_dir: ``<workdir>/.run``. Different names of one folder are one workdir.
        owner: The run.
    """

    #: The holders of this process, so that one whose event loop is gone does not block the next.
    _held: dict[tuple[int, int], WorkdirLock] = {}  # noqa: RUF012  # one for the process, on purpose

    def __init__(self, run_dir: str, owner: _Owner) -> None:
        self._run_dir = run_dir
        self._owner = owner
        self._ownership: Ownership | None = None
        self._key = (0, 0)
        self._timer: asyncio.TimerHandle | None = None

    def acquire(self) -> None:
        """Take the workdir, and give signs of life while the event loop runs that runs now.

        Raises:
            WorkdirLockedError: If another run has it; the message names that run.
            WorkdirError: If the workdir cannot be written, or is not safe from other users.
        """
        try:
            folder = f"{self._run_dir}/owner"
            _files.check_way(self._run_dir)
            _files.make_dir(self._run_dir)
            _files.make_private(self._run_dir)
            _files.make_dir(folder)
            _files.check_way(self._run_dir)  # of what somebody may have made in between
            about = os.stat(folder)
            self._key = (about.st_dev, about.st_ino)
            holder = self._held.get(self._key)
            if holder is not None and holder._owner.is_abandoned():
                holder.release()
            self._ownership = Ownership.take(folder)
        except WorkdirLockedError:
            raise
        except OSError as exc:
            raise WorkdirError(exc.errno, f"The workdir cannot be used: {exc}") from exc
        self._held[self._key] = self
        self._beat_later()

    def _beat_later(self) -> None:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.call_later(BEAT_S, self._beat)

    def _beat(self) -> None:
        if self._ownership is None:
            return
        try:
            is_ours = self._ownership.beat()
        except OSError as exc:
            logger.warning("%s: no sign of life can be left there: %s", self._run_dir, exc)
            is_ours = True
        if is_ours:
            self._beat_later()
        else:
            logger.error("%s was taken over: this run leaves it, and its jobs", self._run_dir)
            self._owner.on_workdir_lost()

    def release(self) -> None:
        """Give the workdir back, if it is held."""
        if self._ownership is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._held.pop(self._key, None)
        ownership, self._ownership = self._ownership, None
        try:
            ownership.release()
        except OSError as exc:
            # Whoever comes next finds that this process is gone.
            logger.warning("%s: its owner's record stays: %s", self._run_dir, exc)

    def _forget(self) -> None:
        if self._ownership is not None:
            self._ownership.forget()
            self._ownership = None

    @classmethod
    def _forget_all(cls) -> None:
        for lock in cls._held.values():
            lock._forget()
        cls._held.clear()


os.register_at_fork(after_in_child=WorkdirLock._forget_all)
