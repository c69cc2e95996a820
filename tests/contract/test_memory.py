"""The in-memory scheduler keeps the part of the contract that needs no processes."""

from __future__ import annotations

from typing import ClassVar

from xqute.testing import Behaviour, MemoryScheduler, Needs, SchedulerContract


def _behave(job):
    """What a command of `TestMemory` says: its duration, then its exit code of each attempt."""
    runs_s, *rcs = job.cmd
    return Behaviour(rc=int(rcs[min(job.trial_count, len(rcs) - 1)]), runs_s=float(runs_s))


class TestMemory(SchedulerContract):
    does_not_apply: ClassVar = {
        Needs.COMMANDS: "its jobs are no commands: they end as they are told to",
        Needs.PROCESSES: "its jobs are no processes",
        Needs.NEW_DRIVER: "its jobs are in the memory of their driver",
    }

    def make_scheduler(self, workdir, **keywords):
        """Make one that has the backend of the one before it in this workdir."""
        schedulers = self.__dict__.setdefault("schedulers", {})
        scheduler = MemoryScheduler(
            workdir, behave=_behave, predecessor=schedulers.get(str(workdir)), **keywords
        )
        schedulers[str(workdir)] = scheduler
        return scheduler

    def command(self, *rcs, runs_s=0.0):
        return [runs_s, *rcs]

    def read(self, job, name):
        text = job.read_file(name)
        return None if text is None else text.encode()


class TestMemoryInBulk(TestMemory):
    """Many jobs in one submission."""

    def make_scheduler(self, workdir, **keywords):
        return super().make_scheduler(workdir, batch=7, **keywords)
