"""The journal: what is written before what, how much of it, and what a disk can do to it."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from xqute import JobOutcome, Xqute, _faults
from xqute._engine.journal import Journal
from xqute._engine.ledger import Ledger
from xqute.testing import Behaviour, Fault, MemoryScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


def read(workdir):
    return Ledger.read(f"{workdir}/.run/journal").entries


class Witness(MemoryScheduler):
    """Reads the journal, as another process would, whenever it is asked for something."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    async def submit(self, submission):
        entries = read(self.workdir)
        self.seen += [("submit", job.index, entries[job.index]) for job in submission.jobs]
        return await super().submit(submission)

    async def kill_jobs(self, jobs, force=False):
        entries = read(self.workdir)
        self.seen += [("kill", job.index, entries[job.index]) for job in jobs]
        await super().kill_jobs(jobs, force)

    def of(self, what):
        return [entry for told, _, entry in self.seen if told == what]


async def test_the_intent_is_there_before_the_submission_leaves_and_the_id_soon_after(tmp_path):
    xq = Xqute(Witness, workdir=tmp_path, forks=1)
    jobs = [await xq.put(["true", str(index)]) for index in range(3)]
    await xq.run_until_complete()
    sent = xq.scheduler.of("submit")
    assert [(entry.attempt, entry.jid, entry.outcome) for entry in sent] == [(0, None, None)] * 3
    assert len({entry.digest for entry in sent}) == 3
    assert {entry.run_id for entry in sent} == {xq.scheduler.run_id}
    assert [entry.jid for entry in read(tmp_path).values()] == [job.jid for job in jobs]


async def test_an_id_is_there_before_the_next_submission_leaves(tmp_path):
    ids = []

    class Next(Witness):
        async def submit(self, submission):
            ids.append({index: entry.jid for index, entry in read(self.workdir).items()})
            return await super().submit(submission)

    xq = Xqute(Next, workdir=tmp_path, forks=1)
    for index in range(3):
        await xq.put(["true", str(index)])
    await xq.run_until_complete()
    assert ids == [{0: None}, {0: 1, 1: None}, {0: 1, 1: 2, 2: None}]


async def test_the_key_and_the_order_of_a_plan_are_there_before_it_leaves(tmp_path):
    xq = Xqute(Witness, workdir=tmp_path, scheduler_opts={"batch": 3}, forks=3)
    jobs = [await xq.put(["true", str(index)]) for index in range(3)]
    key = xq.scheduler.submission_key(jobs[0])
    await xq.run_until_complete()
    assert [(entry.key, entry.position) for entry in xq.scheduler.of("submit")] == [
        (key, 0),
        (key, 1),
        (key, 2),
    ]


async def test_each_attempt_has_an_intent_of_its_own(tmp_path):
    xq = Xqute(
        Witness,
        workdir=tmp_path,
        error_strategy="retry",
        num_retries=2,
        scheduler_opts={"behave": lambda job: Behaviour(rc=1)},
    )
    job = await xq.put("false")
    await xq.run_until_complete()
    assert [entry.attempt for entry in xq.scheduler.of("submit")] == [0, 1, 2]
    assert job.outcome is read(tmp_path)[0].outcome is JobOutcome.FAILED


@pytest.mark.parametrize("at_once", [False, True])
async def test_the_intent_to_kill_is_there_before_the_kill(tmp_path, until, at_once):
    behave = {"behave": lambda job: Behaviour(runs_s=60, ignores_term=at_once)}
    xq = Xqute(Witness, workdir=tmp_path, scheduler_opts=behave)
    job = await xq.put("sleep 60")
    await until(lambda: job.status.name == "RUNNING")
    assert not read(tmp_path)[0].killed
    xq.cancel()
    if at_once:
        xq.cancel()
    await xq.run_until_complete()
    assert all(entry.killed and entry.outcome is None for entry in xq.scheduler.of("kill"))
    assert xq.scheduler.of("kill")
    assert read(tmp_path)[0].outcome is JobOutcome.KILLED


async def test_the_end_is_there_before_the_terminal_hook_and_the_hook_after_it(
    tmp_path, make_plugin
):
    seen = {}

    async def end(scheduler, job):
        entry = read(tmp_path)[job.index]
        seen[job.index] = (entry.outcome, entry.rc, entry.cause, entry.hooked)

    acting = make_plugin(on_job_succeeded=end, on_job_failed=end)
    behave = {"behave": lambda job: Behaviour(rc=job.index * 3)}
    xq = Xqute(MemoryScheduler, workdir=tmp_path, plugins=[acting], scheduler_opts=behave)
    for index in range(2):
        await xq.put(["true", str(index)])
    await xq.run_until_complete()
    assert seen == {0: ("succeeded", 0, None, False), 1: ("failed", 3, "EXIT_CODE", False)}
    assert [entry.hooked for entry in read(tmp_path).values()] == [True, True]


async def test_at_the_edges_the_journal_says_what_they_are_named_after(
    tmp_path, monkeypatch, recorder
):
    known = {}

    def look(edge):
        entry = read(tmp_path).get(0)
        known[edge] = None if entry is None else (entry.jid, entry.outcome)

    monkeypatch.setattr(_faults, "on_reach", look)
    xq = Xqute(workdir=tmp_path, plugins=[recorder])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert known["before-intent"] is None
    assert known["before-sending"] == known["after-answer"] == (None, None)
    assert known["after-hooks"] == (job.jid, JobOutcome.SUCCEEDED)


async def test_a_job_costs_at_most_300_bytes(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=4)
    for index in range(60):
        await xq.put(["true", "x" * 1000], envs={"LONG": "y" * 1000, "N": index})
    await xq.run_until_complete()
    folder = tmp_path / ".run" / "journal"
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert len(read(tmp_path)) == 60
    assert size / 60 <= 300
    ledger = Ledger.read(str(folder))
    ledger.compact()
    assert sum(path.stat().st_size for path in folder.iterdir()) / 60 <= 300


async def test_nothing_of_a_command_or_an_environment_is_in_it(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.put(["echo", "tops3cret"], envs={"TOKEN": "s3same"})
    await xq.run_until_complete()
    folder = tmp_path / ".run" / "journal"
    text = b"".join(path.read_bytes() for path in folder.iterdir())
    assert b"s3" not in text
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


# --- syncing --------------------------------------------------------------------------------------


class Durable(MemoryScheduler):
    outlives_this_machine = True


class Disk:
    """What `os.fsync` is, slow and noted."""

    def __init__(self, takes_s=0.0):
        self.n_syncs, self.takes_s = 0, takes_s
        self.is_free = threading.Event()
        self.is_free.set()
        self.error = None

    def fsync(self, fd):
        self.n_syncs += 1
        assert self.is_free.wait(20)
        if self.takes_s:
            threading.Event().wait(self.takes_s)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk(monkeypatch):
    disk = Disk()
    monkeypatch.setattr("xqute._engine.journal.os.fsync", disk.fsync)
    yield disk
    disk.is_free.set()


async def test_what_outlives_this_machine_is_sent_only_when_its_intent_is_synced(
    tmp_path, disk, until
):
    disk.is_free.clear()
    xq = Xqute(Durable, workdir=tmp_path, forks=10)
    jobs = [await xq.put(["true", str(index)]) for index in range(10)]
    await until(lambda: disk.n_syncs)
    await asyncio.sleep(0)
    assert xq.scheduler.calls.submit == []
    disk.is_free.set()
    await xq.run_until_complete()
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}


async def test_intents_are_synced_in_groups(tmp_path, disk):
    disk.takes_s = 0.02
    xq = Xqute(Durable, workdir=tmp_path, forks=1000, submission_batch=50)
    for index in range(500):
        await xq.put(["true", str(index)])
    await xq.run_until_complete()
    assert 2 <= disk.n_syncs <= 100


async def test_what_dies_with_this_machine_waits_for_no_disk(tmp_path, disk):
    xq = Xqute(MemoryScheduler, workdir=tmp_path)
    await xq.put("true")
    await xq.run_until_complete()
    assert disk.n_syncs == 0


async def test_a_sync_that_fails_keeps_submissions_back_until_it_does_not(tmp_path, disk, until):
    disk.error = OSError(5, "the disk is ill")
    xq = Xqute(Durable, workdir=tmp_path)
    job = await xq.put("true")
    await until(lambda: disk.n_syncs >= 2)
    assert xq.scheduler.calls.submit == []
    disk.error = None
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED


@pytest.mark.usefixtures("impatient")
async def test_a_sync_that_goes_on_failing_is_the_reason_of_a_refusal(tmp_path, disk):
    disk.error = OSError(5, "the disk is ill")
    xq = Xqute(Durable, workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUBMIT_FAILED
    assert "the disk is ill" in job.reason
    assert xq.scheduler.calls.submit == []


# --- a disk that takes no or not all bytes --------------------------------------------------------


class Narrow:
    """What `os.write` is on a disk with room for `room` more bytes."""

    def __init__(self, monkeypatch):
        self.room = None
        self.write = os.write
        monkeypatch.setattr("xqute._engine.journal.os.write", self)

    def __call__(self, fd, data):
        if self.room is not None:
            if not self.room:
                raise OSError(28, "No space left on device")
            data = data[: self.room]
            self.room -= len(data)
        return self.write(fd, data)


@pytest.mark.parametrize("room", [0, 1, 9, 40, 75, 130, 200])
async def test_a_disk_that_took_a_part_gets_the_rest_later(tmp_path, monkeypatch, until, room):
    narrow = Narrow(monkeypatch)
    xq = Xqute(MemoryScheduler, workdir=tmp_path, forks=2)
    jobs = [await xq.put(["true", str(index)]) for index in range(3)]
    narrow.room = room
    await until(lambda: narrow.room == 0)
    told = read(tmp_path)
    assert all(told[index].rc == 0 for index in told)
    narrow.room = None
    await xq.run_until_complete()
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}
    told = read(tmp_path)
    assert [(told[n].outcome, told[n].jid, told[n].hooked) for n in range(3)] == [
        (JobOutcome.SUCCEEDED, job.jid, True) for job in jobs
    ]


async def test_a_group_is_written_at_once(tmp_path):
    journal, _ = await Journal.open(str(tmp_path), "0a", durable=False)
    writes = []
    (path,) = tmp_path.iterdir()
    assert path.name == "000001-0a.jsonl"
    for _ in range(3):
        await asyncio.sleep(0)
        writes.append(path.stat().st_size)
    assert writes[0] == writes[-1] > 0
    await journal.close()


async def test_a_refused_submission_leaves_an_intent_without_an_id(tmp_path):
    faults = {"submit": [Fault.REFUSE]}
    xq = Xqute(MemoryScheduler, workdir=tmp_path, scheduler_opts={"faults": faults})
    await xq.put("true")
    await xq.run_until_complete()
    entry = read(tmp_path)[0]
    assert (entry.jid, entry.outcome) == (None, JobOutcome.SUBMIT_FAILED)


async def test_a_kill_of_nothing_is_no_record(tmp_path, caplog):
    """A second signal may come when nothing runs any more."""
    journal, _ = await Journal.open(str(tmp_path), "abc", durable=False)
    journal.killing([])
    await journal.close()
    [segment] = tmp_path.iterdir()
    assert len(segment.read_bytes().splitlines()) == 1
    Ledger.read(str(tmp_path))
    assert caplog.records == []
