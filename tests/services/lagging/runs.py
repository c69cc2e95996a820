"""What tests of a workdir that lags share: its mount, and how late the ends of jobs are told."""

from __future__ import annotations

import time
from contextlib import contextmanager

from xqute import plugin
from xqute.testing import bash

LAG_S, POLL_S = 2.0, 1.0


@contextmanager
def lagging_workdir(base, *as_root):
    """Give a workdir as it is seen here, late, and as the nodes see it."""
    from lagging.mount import mounted  # where there is no FUSE the tests are not to run

    folder, mountpoint = base / "folder", base / "mount"
    folder.mkdir()
    mountpoint.mkdir()
    with mounted(folder, mountpoint, LAG_S, *as_root):
        yield mountpoint / "w", str(folder / "w")


class Ends:
    """A plugin that notes when jobs are told to have succeeded."""

    def __init__(self):
        self.told_s = {}

    @plugin.impl
    async def on_job_succeeded(self, scheduler, job):
        self.told_s[job.index] = time.time()

    def late_s(self, jobs):
        """How late the ends were told of jobs that have said the time at their own."""
        return [self.told_s[job.index] - float(job.stdout_file.read_text()) for job in jobs]


async def feed_timed(xq):
    """Feed 30 jobs that say the time at their ends, which come at any time between two polls."""
    for number in range(30):
        end = f"{number % 4}.{number * 37 % 100:02}"
        await xq.feed(bash(f"sleep {end}; printf %s $EPOCHREALTIME"))
