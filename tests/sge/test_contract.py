"""The scheduler keeps the contract on a real Grid Engine, as an ordinary user."""

from __future__ import annotations

import pytest

from xqute.testing import SchedulerContract
from xqute_sge import SgeScheduler

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]


class TestSge(SchedulerContract):
    def make_scheduler(self, workdir, **keywords):
        return SgeScheduler(workdir, **keywords)
