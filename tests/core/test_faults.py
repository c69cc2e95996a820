"""What disks, clocks, listings and plugins can do to a run: no job is lost, and none lies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import time

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import Job, JobOutcome, JobStatus, WorkdirError, Xqute, _files
from xqute._engine.flight import Flight
from xqute._engine.ledger import Ledger
from xqute._engine.settle import claim_lost, judge
from xqute.scheduler import BackendState, Phase
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import MemoryScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


class Elsewhere(LocalScheduler):
    """As a backend on other machines: jobs tell by the spool, and are asked about."""

    name = "elsewhere"

    def watch(self, report):
        pass

    async def submit_job(self, job):
        return await super().submit_job(job)


def entries(workdir):
    return Ledger.read(f"{workdir}/.run/journal").entries


# --- a full disk ----------------------------------------------------------------------------------


def fill(path):
    """Take all that is left of a disk, to the last byte."""
    with open(path / "filler", "ab", buffering=0) as file:
        for size in (65536, 4096, 64, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass
    assert not os.statvfs(path).f_bavail


@pytest.mark.needs("mount", root=True)
async def test_a_disk_that_is_full_for_a_while_holds_jobs_up_and_loses_none(mounted, until, gate):
    path = mounted("size=2m")
    xq = Xqute(workdir=path, forks=2)
    running = await xq.put(gate.command())
    await until(running.status_file.exists)
    waiting = [await xq.put(["bash", "-c", f"echo {index}"]) for index in range(4)]
    fill(path)
    gate.open()
    await running.wait()
    assert running.outcome is JobOutcome.SUCCEEDED
    assert not any(job.has_ended for job in waiting[1:])
    os.unlink(path / "filler")
    await xq.run_until_complete()
    for index, job in enumerate(waiting):
        # One may have been on its way just then: its outputs could not be made, and it says so.
        told = (job.outcome, job.rc)
        assert told in {(JobOutcome.SUCCEEDED, 0), (JobOutcome.FAILED, 122)}, job.reason
        if job.outcome is JobOutcome.SUCCEEDED:
            assert job.stdout_file.read_text() in {f"{index}\n", ""}
    assert [job.outcome for job in waiting].count(JobOutcome.SUCCEEDED) >= 2
    assert entries(path)[0].outcome is JobOutcome.SUCCEEDED


@pytest.mark.needs("mount", root=True)
@pytest.mark.parametrize("rc", [0, 7])
async def test_an_exit_that_the_driver_saw_is_told_though_it_could_not_be_stored(
    mounted, until, gate, rc
):
    path = mounted("size=1m")
    xq = Xqute(workdir=path)
    job = await xq.put(gate.command(f"exit {rc}"))
    await until(job.status_file.exists)
    fill(path)
    gate.open()
    await job.wait()
    assert (job.rc, job.outcome is JobOutcome.SUCCEEDED) == (rc, rc == 0)
    os.unlink(path / "filler")
    await xq.run_until_complete()
    assert entries(path)[0].rc == rc


DRIVER = """
    import asyncio, json, os, sys
    from xqute import Xqute

    async def main():
        xq = Xqute(workdir=sys.argv[1], resume=True, forks=20)
        for command in json.loads(sys.argv[2]):
            await xq.put(command)
        await xq.run_until_complete()
        print(json.dumps([[job.outcome.name, job.rc, job.reason] for job in xq.jobs]))

    asyncio.run(main())
"""


@pytest.mark.needs("mount", root=True)
async def test_an_exit_that_nobody_saw_and_no_disk_took_is_lost_with_that_reason(
    mounted, tmp_path, start_driver, until, gate, is_alive
):
    path = mounted("size=1m")
    xq = Xqute(workdir=path / "w")
    job = await xq.put(gate.command("exit 3"))
    await until(job.status_file.exists)
    pid = int(job.jid)
    await xq.detach()
    fill(path)
    gate.open()
    await until(lambda: not is_alive(pid))
    flight = Flight(job, xq.scheduler.claim_tag(job))
    end = claim_lost(flight, BackendState(Phase.GONE), xq.scheduler)
    assert (end.outcome, end.rc) == (JobOutcome.LOST, -3)
    assert "could not be stored" in end.reason or "No space left" in end.reason
    os.unlink(path / "filler")
    # A later run knows that it is over, and not how: it runs again.
    (path / "w" / "0" / "job.rc").write_text("0")  # nobody's word
    told = start_driver(DRIVER, path / "w", '[["bash", "-c", "exit 4"]]').finish()
    assert told[0][:2] == ["FAILED", 4]


class Refusing:
    """A disk that refuses the `n`-th writing call of this process in a folder, and all after it."""

    def __init__(self, monkeypatch, folder, n):
        self.folder, self.n_left = f"{folder}/", n
        self.is_refusing = False
        self.fds = {}
        self.originals = {name: getattr(os, name) for name in ("open", "write", "mkdir", "close")}
        for name in self.originals:
            monkeypatch.setattr(os, name, getattr(self, name))

    def _count(self):
        self.n_left -= 1
        self.is_refusing = self.is_refusing or self.n_left < 0
        if self.is_refusing and self.n_left > -10_000:
            raise OSError(errno.ENOSPC, "No space left on device")

    def open(self, path, flags, *args, **kwargs):
        ours = isinstance(path, str) and path.startswith(self.folder)
        if ours and flags & os.O_CREAT:
            self._count()
        fd = self.originals["open"](path, flags, *args, **kwargs)
        if ours:
            self.fds[fd] = path
        return fd

    def write(self, fd, data):
        if fd in self.fds:
            self._count()
        return self.originals["write"](fd, data)

    def mkdir(self, path, *args, **kwargs):
        if isinstance(path, str) and path.startswith(self.folder) and not os.path.isdir(path):
            self._count()
        return self.originals["mkdir"](path, *args, **kwargs)

    def close(self, fd):
        self.fds.pop(fd, None)
        return self.originals["close"](fd)

    def relent(self):
        self.n_left = -10_001


@pytest.mark.parametrize("n", range(0, 40, 2))
async def test_whichever_write_a_disk_refuses_first_no_job_is_lost_or_runs_twice(
    tmp_path, monkeypatch, n
):
    workdir = tmp_path / "w"
    workdir.mkdir()
    disk = Refusing(monkeypatch, workdir, n)
    asyncio.get_running_loop().call_later(0.7, disk.relent)
    jobs, refused = [], 0
    xq = Xqute(workdir=workdir, forks=2)
    for index in range(4):
        command = ["bash", "-c", f"echo {index} >>{tmp_path}/ran"]
        while True:
            try:
                jobs.append(await xq.put(command))
            except WorkdirError:  # the caller is told, and may try again
                refused += 1
                await asyncio.sleep(0.05)
            else:
                break
    await asyncio.wait_for(xq.run_until_complete(), 60)
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 4
    ran = (tmp_path / "ran").read_text().split()
    assert sorted(ran) == ["0", "1", "2", "3"]
    told = entries(workdir)
    assert [told[job.index].outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 4
    assert disk.is_refusing or n > 20


# --- a read-only workdir --------------------------------------------------------------------------


class ReadOnly:
    """A workdir that is read-only: by a mount over it, and for what is open already by a patch."""

    def __init__(self, monkeypatch, path):
        self.path = path
        self._patch = monkeypatch
        self._write = os.write
        subprocess.run(["mount", "--bind", path, path], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        monkeypatch.setattr("xqute._engine.journal.os.write", self._refuse)

    def _refuse(self, fd, data):
        if self.path is None or not os.readlink(f"/proc/self/fd/{fd}").startswith(str(self.path)):
            return self._write(fd, data)
        raise OSError(errno.EROFS, "Read-only file system")

    def end(self):
        if self.path is not None:
            subprocess.run(["umount", "-l", self.path], check=True)
            self.path = None


@pytest.fixture
def read_only(monkeypatch):
    made = []

    def make(path):
        made.append(ReadOnly(monkeypatch, path))
        return made[-1]

    yield make
    for each in made:
        each.end()


@pytest.mark.needs("mount", root=True)
@pytest.mark.timeout(180)
async def test_a_workdir_that_is_read_only_for_10_s_holds_jobs_up_and_loses_none(
    tmp_path, read_only, until, gate
):
    path = tmp_path / "w"
    xq = Xqute(workdir=path, forks=2)
    running = await xq.put(gate.command("exit 6"))
    await until(running.status_file.exists)
    blocking = await xq.put(gate.command())
    await until(blocking.status_file.exists)
    waiting = [await xq.put(["bash", "-c", f"echo {index}"]) for index in range(6)]
    broken = read_only(path)
    with pytest.raises(WorkdirError, match="Read-only"):
        await xq.put("true")
    gate.open()
    await asyncio.gather(running.wait(), blocking.wait())
    assert (running.rc, running.outcome) == (6, JobOutcome.FAILED)
    assert (blocking.rc, blocking.outcome) == (0, JobOutcome.SUCCEEDED)
    await asyncio.sleep(10)  # not for something to happen: that is how long it lasts
    assert not any(job.has_ended for job in waiting)
    broken.end()
    await xq.run_until_complete()
    assert [job.outcome for job in waiting] == [JobOutcome.SUCCEEDED] * 6
    assert [job.stdout_file.read_text() for job in waiting] == [f"{n}\n" for n in range(6)]
    told = entries(path)
    assert (told[0].rc, told[1].rc) == (6, 0)
    assert len(told) == 8


@pytest.mark.needs("mount", root=True)
async def test_what_an_earlier_run_left_is_found_out_when_the_workdir_can_be_written_again(
    tmp_path, read_only, monkeypatch, until
):
    path = tmp_path / "w"

    async def never(self, job):
        await asyncio.Event().wait()

    # Its answer never comes: an intent without an id, whose start is to be revoked.
    with monkeypatch.context() as patch:
        patch.setattr("xqute.schedulers.local_scheduler.LocalScheduler.submit_job", never)
        first = Xqute(workdir=path)
        await first.put("true")
        await until(lambda: entries(path))
        first.scheduler.kill_grace_s = 0.1
    segments = {p: p.read_bytes() for p in (path / ".run" / "journal").iterdir()}
    first.cancel()
    first.cancel()
    await first.run_until_complete()
    for each in (path / ".run" / "journal").iterdir():
        each.unlink()
    for segment, content in segments.items():
        segment.write_bytes(content)
    for claim in (path / "0").glob("job.start.*"):
        claim.unlink()

    second = Xqute(workdir=path, resume=True)
    await second._get_engine()
    broken = read_only(path / "0")
    job = await second.put(Job(0, "true", path))
    await asyncio.sleep(0.3)
    assert not job.has_ended
    broken.end()
    await second.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-3600.0, -40 * 365 * 86400.0, 86400.0])
async def test_a_clock_that_jumps_changes_nothing_but_the_times_told(
    tmp_path, monkeypatch, until, gate, jump_s
):
    xq = Xqute(workdir=tmp_path / "w", forks=2, error_strategy="retry", num_retries=1)
    waits = await xq.put(gate.command("exit 5"))
    slow = await xq.put("sleep 60", timeout=1.5)
    await until(lambda: waits.status is slow.status is JobStatus.RUNNING)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    later = await xq.put("true")
    began_s = time.monotonic()
    gate.open()
    await asyncio.wait_for(xq.run_until_complete(), 60)
    assert time.monotonic() - began_s < 30
    assert (waits.outcome, waits.rc, waits.trial_count) == (JobOutcome.FAILED, 5, 1)
    assert slow.outcome is JobOutcome.TIMEOUT
    assert later.outcome is JobOutcome.SUCCEEDED
    told = entries(tmp_path / "w")
    assert [told[index].outcome for index in range(3)] == ["failed", "timeout", "succeeded"]


async def test_a_clock_that_was_set_back_between_two_runs_gives_no_job_more_time(
    tmp_path, monkeypatch, until
):
    first = Xqute(workdir=tmp_path / "w")
    job = await first.put("sleep 60", timeout=30)
    await until(lambda: job.status is JobStatus.RUNNING)
    await first.detach()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 86400)
    second = Xqute(workdir=tmp_path / "w")
    job = await second.put("sleep 60", timeout=1)
    began_s = time.monotonic()
    await asyncio.wait_for(second.run_until_complete(), 60)
    assert job.outcome is JobOutcome.TIMEOUT
    assert time.monotonic() - began_s < 25


# --- a slow disk ----------------------------------------------------------------------------------


class Durable(MemoryScheduler):
    outlives_this_machine = True


async def test_a_sync_that_takes_500_ms_blocks_nothing_but_submissions(tmp_path, monkeypatch):
    n_syncs = 0

    def fsync(fd):
        nonlocal n_syncs
        n_syncs += 1
        time.sleep(0.5)

    monkeypatch.setattr("xqute._engine.journal.os.fsync", fsync)
    lags_s = []

    async def sample():
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(0.01)
            lags_s.append(time.perf_counter() - began_s - 0.01)

    sampler = asyncio.create_task(sample())
    xq = Xqute(Durable, workdir=tmp_path, forks=50)
    began_s = time.perf_counter()
    jobs = [await xq.put(["true", str(index)]) for index in range(100)]
    fed_s = time.perf_counter() - began_s
    await jobs[0].wait()
    first_s = time.perf_counter() - began_s
    await xq.run_until_complete()
    sampler.cancel()
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}
    assert first_s >= 0.5  # it was not sent before
    assert fed_s < first_s
    assert n_syncs < 30  # and they shared
    lags_s.sort()
    assert lags_s[len(lags_s) * 9 // 10] < 0.25, "the event loop waited for the disk"


# --- plugins that raise ---------------------------------------------------------------------------

HOOKS = [
    "on_job_init",
    "on_job_queued",
    "on_job_submitting",
    "on_job_submitted",
    "on_job_started",
    "on_job_polling",
    "on_job_killing",
    "on_job_killed",
    "on_job_failed",
    "on_job_succeeded",
]


@pytest.mark.parametrize("hook", HOOKS)
async def test_a_hook_that_raises_during_recovery_loses_nothing(
    tmp_path, make_plugin, until, gate, hook
):
    commands = [
        ["true"],  # has succeeded
        ["false"],  # has failed
        gate.command("exit 0"),  # is alive, and succeeds
        gate.command("exit 9"),  # is alive, and fails
        ["sleep", "60"],  # is alive, and is killed
        ["echo", "new"],
    ]
    first = Xqute(workdir=tmp_path / "w", forks=10)
    jobs = [await first.put(command) for command in commands[:5]]
    await asyncio.gather(jobs[0].wait(), jobs[1].wait())
    await until(lambda: all(job.status is JobStatus.RUNNING for job in jobs[2:]))
    await first.detach()

    async def fail(scheduler, job):
        raise ZeroDivisionError(hook)

    async def fail_polling(scheduler, job, counter):
        raise ZeroDivisionError(hook)

    plugins = [make_plugin(**{hook: fail_polling if hook == "on_job_polling" else fail})]
    second = Xqute(workdir=tmp_path / "w", forks=10, resume=True, plugins=plugins)
    jobs = [await second.put(command) for command in commands]
    await until(lambda: all(job.status is JobStatus.RUNNING for job in jobs[2:5]))
    if hook == "on_job_polling":
        await asyncio.sleep(1.2)  # until it was called
    gate.open()
    killing = asyncio.create_task(second.scheduler.kill_job_and_update_status(jobs[4]))
    await asyncio.wait_for(second.run_until_complete(), 60)
    await killing
    assert [(job.outcome.name, job.rc) for job in jobs[:4]] == [
        ("SUCCEEDED", 0),
        ("FAILED", 1),
        ("SUCCEEDED", 0),
        ("FAILED", 9),
    ]
    assert jobs[4].outcome is JobOutcome.KILLED
    assert jobs[5].outcome is JobOutcome.SUCCEEDED
    assert [job.adopted for job in jobs] == [True, False, True, True, True, False]


# --- listings that lag ----------------------------------------------------------------------------


class Lagging:
    """Listings of a folder and of what is below it tell what was there some time ago.

    As a network file system's do; unless something was just made there from here.
    """

    def __init__(self, monkeypatch, folder, lag_s):
        self.folder, self.lag_s = str(folder), lag_s
        self.cached = {}
        self.n_stale = 0
        self._listdir, self._open = os.listdir, os.open
        monkeypatch.setattr(os, "listdir", self.listdir)
        monkeypatch.setattr(os, "open", self.open)

    def open(self, path, flags, *args, **kwargs):
        if flags & os.O_CREAT and isinstance(path, str):
            self.cached.pop(os.path.dirname(path), None)
        return self._open(path, flags, *args, **kwargs)

    def listdir(self, path="."):
        if not str(path).startswith(self.folder):
            return self._listdir(path)
        at_s, names = self.cached.get(path, (float("-inf"), []))
        if time.monotonic() - at_s > self.lag_s:
            at_s, names = self.cached[path] = (time.monotonic(), self._listdir(path))
        else:
            self.n_stale += names != self._listdir(path)
        return list(names)


def test_files_that_are_not_listed_yet_are_removed_all_the_same(tmp_path, monkeypatch):
    job = Job(0, "true", tmp_path)
    job.write_file("job.wrapped.ssh", "")
    job.jid = 7
    lagging = Lagging(monkeypatch, tmp_path, 3600)
    os.listdir(f"{tmp_path}/0")
    # Another machine writes what this one has not listed.
    for name, text in {"job.rc": "0", "job.status": "6", "job.stdout": "old"}.items():
        (tmp_path / "0" / name).write_text(text)
    job.clean()
    assert lagging.n_stale
    assert job.read_file("job.status") is None
    assert job.rc == -1


def test_files_that_are_listed_and_gone_are_no_error(tmp_path, monkeypatch):
    job = Job(0, "true", tmp_path)
    for name in ("job.rc", "job.status", "job.stdout", "job.end.a-0", "job.start.a-0"):
        job.write_file(name, "x")
    Lagging(monkeypatch, tmp_path, 3600)
    for name in os.listdir(f"{tmp_path}/0"):
        os.unlink(f"{tmp_path}/0/{name}")
    job.clean()
    job.clean(retry=True)
    assert os.path.isdir(f"{tmp_path}/0/job.retry/0")


async def test_a_run_reads_the_journal_that_is_there_not_the_one_that_was_listed(
    tmp_path, monkeypatch, start_driver
):
    folder = f"{tmp_path}/w/.run/journal"
    os.makedirs(folder)
    Lagging(monkeypatch, tmp_path, 3600)
    assert os.listdir(folder) == []
    start_driver(DRIVER, tmp_path / "w", '["true"]').finish()
    assert os.listdir(folder) == []
    second = Xqute(workdir=tmp_path / "w", resume=True)
    job = await second.put("true")
    await second.run_until_complete()
    assert job.adopted


async def test_jobs_of_other_machines_end_though_the_spool_is_listed_late(tmp_path, monkeypatch):
    monkeypatch.setattr("xqute._engine.spool._open_inotify", lambda folder: None)
    monkeypatch.setattr(_files, "freshen", lambda folder: None)
    lagging = Lagging(monkeypatch, tmp_path, 2.0)
    xq = Xqute(Elsewhere, workdir=tmp_path / "w", forks=4)
    jobs = [await xq.put(["bash", "-c", f"exit {index}"]) for index in range(4)]
    await asyncio.wait_for(xq.run_until_complete(), 60)
    assert [job.rc for job in jobs] == [0, 1, 2, 3]
    assert lagging.cached


# --- what is read back ----------------------------------------------------------------------------

FUZZ = settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NEARLY = st.text("0123456789-+_ .\n\tTrevokd\0é", max_size=20).map(str.encode)
CONTENT = st.one_of(st.none(), NEARLY, st.binary(max_size=40), st.sampled_from([b"6", b"7", b"4"]))


@FUZZ
@given(CONTENT)
@example(b"1_0")
@example(b"+5")
@example("\N{ARABIC-INDIC DIGIT FIVE}".encode())
@example(b"\xff\xfe")
@example(b"9" * 5000)
@example(b"0\n")
def test_an_exit_code_is_what_the_wrapper_writes_or_unknown(tmp_path, content):
    job = Job(0, "true", tmp_path)
    (tmp_path / "0" / "job.rc").write_bytes(content or b"")
    text = (content or b"").decode("utf-8", "replace").strip()
    digits = text.removeprefix("-")
    is_exact = (
        digits.isascii() and digits.isdigit() and len(digits) <= 10 and str(int(text)) == text
    )
    assert job.rc == (int(text) if is_exact else -1)


@FUZZ
@given(CONTENT, st.sampled_from([JobStatus.SUBMITTED, JobStatus.RUNNING, JobStatus.KILLING]))
def test_a_status_is_one_of_three_or_what_it_was(tmp_path, content, before):
    job = Job(0, "true", tmp_path)
    (tmp_path / "0" / "job.status").write_bytes(content or b"")
    job.enter(before)
    told = {b"4": JobStatus.RUNNING, b"6": JobStatus.FINISHED, b"7": JobStatus.FAILED}
    status = told.get((content or b"").strip(b" \n\t\r\f\v\x1c\x1d\x1e\x1f"), before)
    if before is JobStatus.KILLING and status in (JobStatus.FINISHED, JobStatus.FAILED):
        status = JobStatus.FINISHED
    assert job.status is max(status, before)


@FUZZ
@given(CONTENT)
def test_any_id_file_is_text_or_no_id(tmp_path, content):
    job = Job(0, "true", tmp_path)
    (tmp_path / "0" / "job.jid").write_bytes(content or b"")
    assert job.jid is None or (job.jid and isinstance(job.jid, str))


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    return LocalScheduler(tmp_path_factory.mktemp("w"))


@FUZZ
@given(
    st.fixed_dictionaries(dict.fromkeys(("job.status", "job.rc", "start", "end"), CONTENT)),
    st.sampled_from([None, BackendState(Phase.RUNNING), BackendState(Phase.GONE)]),
    st.booleans(),
)
@example({"job.status": b"6", "job.rc": b"0", "start": b"", "end": b"0 6"}, None, False)
@example({"job.status": b"6", "job.rc": b"0", "start": b"", "end": None}, None, False)
@example({"job.status": None, "job.rc": b"0", "start": None, "end": b"0 6 \n"}, None, False)
def test_no_noise_in_a_job_s_files_is_taken_for_an_end(scheduler, contents, state, kill):
    job = scheduler.create_job(0, "true")
    job.clean()
    tag = scheduler.claim_tag(job)
    names = {"start": f"job.start.{tag}", "end": f"job.end.{tag}"}
    for name in os.listdir(job.local_dir):
        os.unlink(f"{job.local_dir}/{name}")
    for name, content in contents.items():
        if content is not None:
            with open(f"{job.local_dir}/{names.get(name, name)}", "wb") as file:
                file.write(content)
    flight = Flight(job, tag)
    flight.kill_requested = kill
    end = judge(flight, state, scheduler)
    if end is None:
        return
    recorded = contents["end"] or b""
    if recorded.endswith(b"\n") and recorded.count(b" ") >= 2:
        assert recorded.startswith(f"{end.rc} ".encode())
    else:  # the word of a job that does not run in our wrapper
        assert contents["start"] is None
        assert (contents["job.status"] or b"").decode("utf-8", "replace").strip() in {"6", "7"}


NAMES = st.one_of(
    st.text("0123456789.-", min_size=1, max_size=30),
    st.from_regex(r"\A[0-3]\.[01]\.0\.[467]\.-?[0-9]\.[0-9]{1,13}\Z"),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
    ),
)


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(NAMES, max_size=12))
@example(["0.0.0.6.0.1", "0.0.0.7.1.1", "1.0.0.4.-1.9", "9.9.9.4.-1.9", "0.0.0.6.0.1\n", ".nfs"])
def test_no_name_in_the_spool_ends_a_job_or_a_run(tmp_path, names):
    async def main():
        xq = Xqute(Elsewhere, workdir=tmp_path / "w", forks=4)
        jobs = [await xq.put(["bash", "-c", f"sleep 0.05; exit {index}"]) for index in range(2)]
        spool = tmp_path / "w" / ".run" / "events"
        for name in names:
            if name not in (".", ".."):
                (spool / name).touch()
        await asyncio.wait_for(xq.run_until_complete(), 30)
        assert [(job.rc, job.outcome.name) for job in jobs] == [(0, "SUCCEEDED"), (1, "FAILED")]

    asyncio.run(main())
