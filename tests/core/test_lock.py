"""Who owns a workdir, and when that counts for nothing: the record, flock, and the two together."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import re
import subprocess
import time

import pytest

from xqute import WorkdirLockedError, Xqute, _ownership, _protocol
from xqute._engine import lock as lock_module
from xqute._engine.lock import WorkdirLock
from xqute._ownership import STALE_S, Ownership, find_holder
from xqute.errors import WorkdirError

HOST, BOOT, PIDS = os.uname().nodename, _protocol.boot_id(), os.readlink("/proc/self/ns/pid")
#: Over the largest process id that Linux gives.
NO_PID = 2**22 + 1


@pytest.fixture(params=["flock", "no flock"])
def with_flock(request):
    """Each test is made on a file system with flock, and on one without."""
    return request.param == "flock"


@pytest.fixture(autouse=True)
def _file_system(request, monkeypatch):
    if "with_flock" in request.fixturenames and not request.getfixturevalue("with_flock"):
        numbers = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]

        def flock(fd, operation):
            numbers.append(numbers.pop(0))
            raise OSError(numbers[0], os.strerror(numbers[0]))

        monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "w" / ".run" / "owner"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def leave_record(folder):
    """Leave the record of somebody whose last sign of life was some time ago; give its path."""

    def leave(
        host=HOST,
        boot_id=BOOT,
        namespace=PIDS,
        pid=NO_PID,
        start_ticks=1,
        age_s=0.0,
        number=1,
        has_flock=True,
    ):
        path = folder / f"held.{number}"
        flock = "flock" if has_flock else "-"
        path.write_text(f"{host} {boot_id} {namespace} {pid} {start_ticks} 1700000000 {flock}\n")
        last_s = time.time() - age_s
        os.utime(path, (last_s, last_s))
        return path

    return leave


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != "flock")


def is_free(folder):
    try:
        Ownership.take(str(folder)).release()
    except WorkdirLockedError:
        return False
    return True


class Run:
    """What a lock knows of its run."""

    def __init__(self):
        self.left = []
        self.abandoned = False

    def is_abandoned(self):
        return self.abandoned

    def on_workdir_lost(self):
        self.left.append(True)


# --- taking and giving back ---------------------------------------------------------------------


def test_one_has_it_at_a_time(folder, with_flock):
    first = Ownership.take(str(folder))
    assert not is_free(folder)
    first.release()
    second = Ownership.take(str(folder))
    assert not is_free(folder)
    second.release()
    assert find_holder(str(folder)) is None


def test_what_is_found_is_who_has_it(folder, with_flock):
    before_s = int(time.time())
    ownership = Ownership.take(str(folder))
    holder = find_holder(str(folder))
    assert holder.owner[:4] == (HOST, BOOT, PIDS, os.getpid())
    assert holder.owner.start_ticks == _protocol.process_start_ticks(os.getpid())
    assert before_s <= holder.owner.since_s <= time.time()
    assert holder.age_s < STALE_S
    assert not holder.is_dead(has_flock=False)
    ownership.release()


def test_nothing_but_one_entry_is_left_however_often_it_was_taken(folder, with_flock):
    for _ in range(5):
        Ownership.take(str(folder)).release()
    assert names(folder) == ["free.5"]


def test_a_record_that_cannot_be_written_is_no_ownership(folder, with_flock, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    with pytest.raises(OSError, match="No space left"):
        Ownership.take(str(folder))
    monkeypatch.undo()
    assert names(folder) == []
    assert is_free(folder)


@pytest.mark.parametrize("has_links", [True, False])
def test_who_is_killed_before_it_has_said_who_it_is_blocks_nobody(folder, monkeypatch, has_links):
    """Where there are no links there is an instant at which it does, until its record is old."""

    def dies(fd, *, has_flock):
        raise KeyboardInterrupt

    def fails(source, target):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    if not has_links:
        monkeypatch.setattr(os, "link", fails)
    with monkeypatch.context() as patch:
        patch.setattr(_ownership, "_write_record", dies)
        with pytest.raises(KeyboardInterrupt):
            Ownership.take(str(folder))
    owned = Ownership.take(str(folder))
    assert find_holder(str(folder)).owner.pid == os.getpid()
    owned.release()
    assert len(os.listdir(folder)) == 2, "the flock and the entry that it is free"


def test_a_release_unlocks_whoever_else_has_the_descriptor(folder):
    """As a process that a library forked off without Python's knowledge."""
    ownership = Ownership.take(str(folder))
    copy = os.dup(ownership._flock)
    ownership.release()
    assert is_free(folder)
    os.close(copy)


def test_a_release_that_cannot_be_written_down_unlocks_all_the_same(folder, monkeypatch):
    ownership = Ownership.take(str(folder))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", lambda *paths: (_ for _ in ()).throw(OSError(errno.EROFS, "")))
        with pytest.raises(OSError, match="30"):
            ownership.release()
    assert is_free(folder)


# --- owners that are gone -----------------------------------------------------------------------


def test_the_record_of_a_process_that_is_no_more_is_void_at_once(folder, leave_record, with_flock):
    leave_record()
    assert is_free(folder)


def test_so_is_that_of_a_process_whose_id_another_has_now(folder, leave_record, with_flock):
    leave_record(pid=os.getppid(), start_ticks=1)
    assert is_free(folder)


def test_so_is_that_of_a_zombie(folder, leave_record, with_flock):
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    leave_record(pid=child.pid, start_ticks=_protocol.process_start_ticks(child.pid))
    try:
        assert is_free(folder)
    finally:
        child.wait()


def test_a_record_from_before_the_last_boot_is_void(folder, leave_record, with_flock, monkeypatch):
    monkeypatch.setattr(_ownership, "_uptime_s", lambda: 20.0)
    leave_record(boot_id="another", pid=os.getpid(), age_s=30)
    assert is_free(folder)


def test_one_of_a_host_of_the_same_name_is_not(folder, leave_record, with_flock, monkeypatch):
    """It was heard of while this host was up already, under another boot: there are two of them."""
    monkeypatch.setattr(_ownership, "_uptime_s", lambda: 40.0)
    leave_record(boot_id="another", age_s=30)
    assert not is_free(folder)


def test_a_record_of_another_host_counts_while_it_is_fresh(folder, leave_record, with_flock):
    leave_record(host="elsewhere", boot_id="another", age_s=STALE_S - 5)
    assert not is_free(folder)
    leave_record(host="elsewhere", boot_id="another", age_s=STALE_S + 5)
    assert is_free(folder)


def test_it_is_the_clock_of_the_file_server_that_counts(folder, leave_record, monkeypatch):
    """Its clock is ten hours behind: what looks old here was a moment ago there."""
    leave_record(host="elsewhere", boot_id="another", age_s=36000)
    behind_ns = time.time_ns() - 36_000 * 10**9
    monkeypatch.setattr(_ownership, "_server_time_ns", lambda folder: behind_ns)
    assert not is_free(folder)


def test_that_clock_is_read_from_a_file_which_is_removed(folder):
    before = folder / "before"
    before.touch()
    now_ns = _ownership._server_time_ns(str(folder))
    after = folder / "after"
    after.touch()
    assert before.stat().st_mtime_ns <= now_ns <= after.stat().st_mtime_ns
    assert names(folder) == ["after", "before"]


def test_a_record_of_another_container_is_judged_by_flock_or_by_its_age(
    folder, leave_record, with_flock
):
    """Same kernel, other process ids: nobody is to be found here under this one."""
    leave_record(namespace="pid:[1]", age_s=5)
    assert is_free(folder) is with_flock
    leave_record(namespace="pid:[1]", age_s=STALE_S + 5, number=7)
    assert is_free(folder)


def test_flock_proves_nothing_of_an_owner_that_could_not_have_it(folder, leave_record):
    """The lock service was away for a moment: this process has flock, the living owner has not."""
    ticks = _protocol.process_start_ticks(os.getpid())
    leave_record(pid=os.getpid(), start_ticks=ticks, has_flock=False)
    assert not is_free(folder)
    leave_record(pid=os.getpid(), start_ticks=ticks, has_flock=True)
    assert is_free(folder)


def test_a_record_that_says_nothing_counts_until_it_is_old(folder, with_flock):
    record = folder / "held.1"
    record.touch()
    with pytest.raises(WorkdirLockedError, match="has not said who it is"):
        Ownership.take(str(folder))
    os.utime(record, (1, 1))
    assert is_free(folder)


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "a b c",
        "h b n 0 1 1 -\n",
        "h b n 12 1 1\n",
        "h\x1b[1m b n 12 1 1 -\n",
        "h b n 12 1 1 flock more\n",
        "h b n x 1 1 -\n",
        "\0" * 40,
    ],
)
def test_so_does_one_that_says_something_else(folder, text, with_flock):
    record = folder / "held.1"
    record.write_text(text)
    assert not is_free(folder)
    os.utime(record, (1, 1))
    assert is_free(folder)


def test_files_of_other_names_are_no_records(folder, with_flock):
    for name in ("held", "held.", "held.0", "held.01", "held.x", "free.-1", "xheld.3", "held.3x"):
        (folder / name).touch()
    assert is_free(folder)


def test_who_has_just_locked_it_is_waited_for_until_it_has_said_who_it_is(folder, monkeypatch):
    """On a busy machine, it may be long until it goes on."""
    flock = os.open(folder / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(flock, fcntl.LOCK_EX)
    looks = []

    def find(path):
        looks.append(path)
        if len(looks) == 50:
            _ownership._take_record(str(folder), flock, has_flock=True, force=False)
        return find_holder(path)

    monkeypatch.setattr(_ownership, "find_holder", find)
    with pytest.raises(WorkdirLockedError, match=f"pid {os.getpid()} on"):
        Ownership.take(str(folder))
    os.close(flock)


def test_who_has_locked_it_and_never_says_who_it_is_is_not_waited_for_long(folder, monkeypatch):
    monkeypatch.setattr(_ownership, "_PATIENCE_S", 0.1)
    flock = os.open(folder / "flock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(flock, fcntl.LOCK_EX)
    with pytest.raises(WorkdirLockedError, match="a process that has not said who it is"):
        Ownership.take(str(folder))
    os.close(flock)


# --- those who come late ------------------------------------------------------------------------


@pytest.mark.parametrize("later", ["held", "free"])
def test_who_was_asleep_after_looking_gets_nothing_that_others_have_had_since(
    folder, leave_record, monkeypatch, later
):
    """It has seen a dead owner, number 1, and slept while 2 (and 3) were taken and given back."""
    leave_record()
    seen = _ownership._look(str(folder))
    owner = None
    Ownership.take(str(folder)).release()
    if later == "held":
        owner = Ownership.take(str(folder))
        monkeypatch.setattr(_ownership, "_take_flock", lambda folder, force: (os.dup(0), False))
    looks = [seen]
    look = _ownership._look
    monkeypatch.setattr(_ownership, "_look", lambda path: looks.pop() if looks else look(path))
    if owner is not None:
        with pytest.raises(WorkdirLockedError):
            Ownership.take(str(folder))
        assert names(folder) == ["held.3"]
        assert owner.beat()
        owner.release()
    else:
        late = Ownership.take(str(folder))
        assert names(folder) == ["held.3"]
        late.release()


def test_who_is_overtaken_while_it_says_who_it_is_gets_nothing(folder, monkeypatch, with_flock):
    """Somebody has a higher number, and has removed the lower ones."""
    write_record, owners = _ownership._write_record, []

    def slow_write_record(fd, has_flock):
        monkeypatch.setattr(_ownership, "_write_record", write_record)
        write_record(fd, has_flock=has_flock)
        owners.append(Ownership.take(str(folder), force=True))

    monkeypatch.setattr(_ownership, "_write_record", slow_write_record)
    assert not is_free(folder)
    assert owners[0].beat()
    owners[0].release()


def test_a_lock_on_a_file_that_was_replaced_meanwhile_is_none(folder, monkeypatch):
    """Who opens the file just before --force replaces it, and locks it just after."""
    flock, owners = fcntl.flock, []

    def late_flock(fd, operation):
        if not owners:
            owners.append(None)
            (folder / "flock").unlink()
            owners.append(Ownership.take(str(folder)))
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late_flock)
    assert not is_free(folder)
    owners[1].release()


def test_an_owner_that_was_given_up_notices_and_takes_nothing_back(folder, with_flock):
    first = Ownership.take(str(folder))
    assert first.beat()
    second = Ownership.take(str(folder), force=True)
    assert not first.beat()
    first.release()
    assert second.beat()
    assert not is_free(folder)
    second.release()


def test_an_owner_whose_folder_was_removed_notices(folder):
    ownership = Ownership.take(str(folder))
    for path in folder.iterdir():
        path.unlink()
    assert not ownership.beat()
    folder.rmdir()
    assert not ownership.beat()
    ownership.release()


# --- the lock of a run --------------------------------------------------------------------------


def test_the_error_names_the_owner(folder):
    run_dir = str(folder.parent)
    lock = WorkdirLock(run_dir, Run())
    lock.acquire()
    with pytest.raises(WorkdirLockedError) as caught:
        WorkdirLock(run_dir, Run()).acquire()
    since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    pattern = (
        rf"at work in {re.escape(str(folder.parents[1]))}: pid {os.getpid()} on {HOST} {since}"
    )
    assert re.search(pattern, str(caught.value))
    lock.release()


def test_of_an_owner_elsewhere_it_says_when_it_was_heard_of(folder, leave_record):
    leave_record(host="elsewhere", boot_id="another", age_s=12)
    with pytest.raises(WorkdirLockedError, match=r"on elsewhere .*heard of 1\d s ago .*unlock"):
        WorkdirLock(str(folder.parent), Run()).acquire()


def test_an_abandoned_run_of_this_process_does_not_block_the_next(folder, with_flock):
    run = Run()
    WorkdirLock(str(folder.parent), run).acquire()
    next_one = WorkdirLock(str(folder.parent), Run())
    with pytest.raises(WorkdirLockedError):
        next_one.acquire()
    run.abandoned = True
    next_one.acquire()
    next_one.release()


def test_a_release_of_what_is_not_held_does_nothing(folder, with_flock):
    lock, other = (WorkdirLock(str(folder.parent), Run()) for _ in range(2))
    lock.acquire()
    other.release()
    assert not is_free(folder)
    lock.release()
    lock.release()
    assert is_free(folder)


def test_a_workdir_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / ".run").touch()
    with pytest.raises(WorkdirError, match="cannot be used") as caught:
        WorkdirLock(str(tmp_path / ".run"), Run()).acquire()
    assert not isinstance(caught.value, WorkdirLockedError)


async def test_signs_of_life_are_left_while_the_loop_runs(folder, monkeypatch, until):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.001)
    lock = WorkdirLock(str(folder.parent), Run())
    lock.acquire()
    for _ in range(3):
        os.utime(folder / "held.1", (1, 1))
        await until(lambda: (folder / "held.1").stat().st_mtime > 1)
    lock.release()
    os.utime(folder / "free.1", (1, 1))
    beaten = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, beaten.set)  # ten beats, were there any
    await beaten.wait()
    assert (folder / "free.1").stat().st_mtime == 1


async def test_a_sign_of_life_that_cannot_be_left_is_tried_again(
    folder, monkeypatch, until, caplog
):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.001)
    run = Run()
    lock = WorkdirLock(str(folder.parent), run)
    lock.acquire()

    def fail(*args):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", fail)
        await until(lambda: caplog.text.count("no sign of life") > 2)
    os.utime(folder / "held.1", (1, 1))
    await until(lambda: (folder / "held.1").stat().st_mtime > 1)
    assert not run.left
    lock.release()


@pytest.mark.usefixtures("job_processes")
async def test_a_run_whose_workdir_was_taken_over_ends_and_leaves_its_jobs_to_the_other(
    tmp_path, gate, monkeypatch, until, caplog
):
    monkeypatch.setattr(lock_module, "BEAT_S", 0.005)
    xq = Xqute(workdir=tmp_path / "w")
    running, waiting = [await xq.put(gate.command(f"exit {n}")) for n in (3, 4)]
    await until(running.status_file.exists)
    other = Ownership.take(str(tmp_path / "w" / ".run" / "owner"), force=True)
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (running.outcome, waiting.outcome) == (None, None)
    assert "was taken over" in caplog.text
    assert other.beat()
    other.release()
    successor = Xqute(workdir=tmp_path / "w", forks=2)
    jobs = [await successor.put(gate.command(f"exit {n}")) for n in (3, 4)]
    gate.open()
    await asyncio.wait_for(successor.run_until_complete(), 10)
    assert [(job.rc, job.adopted) for job in jobs] == [(3, True), (4, False)]
