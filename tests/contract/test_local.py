"""The local scheduler keeps the contract: with fork servers, with pidfd and without."""

from __future__ import annotations

import errno
import os

import pytest

from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import SchedulerContract


class TestLocal(SchedulerContract):
    def make_scheduler(self, workdir, **keywords):
        return LocalScheduler(workdir, **keywords)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="wrappers are not forked then")
@pytest.mark.usefixtures("every_wrapper_forked")
class TestLocalForked(TestLocal):
    """Each wrapper in a process that was forked beforehand, where mostly the first are not."""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there is no pidfd to be without")
class TestLocalWithoutPidfd(TestLocal):
    many = 60

    @pytest.fixture(autouse=True)
    def _without_pidfd(self, monkeypatch):
        def fails(pid, flags=0):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        monkeypatch.setattr(os, "pidfd_open", fails)
