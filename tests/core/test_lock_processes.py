"""The lock between real processes: races, owners that are killed, stopped or forked, mounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from xqute import WorkdirLockedError, Xqute
from xqute._ownership import STALE_S, Ownership

#: What each program begins with: its second argument says whether this file system has flock.
BEGIN = """\
import errno, fcntl, json, os, signal, sys, time
folder, has_flock = sys.argv[1], sys.argv[2] == "True"
def no_flock(fd, operation):
    raise OSError(errno.ENOLCK, "No locks available")
if not has_flock:
    fcntl.flock = no_flock
from xqute import WorkdirLockedError
from xqute._ownership import Ownership
"""

RACE = """
line = sys.stdin.readline()
while line:
    try:
        owner = Ownership.take(folder)
    except WorkdirLockedError as exc:
        print(json.dumps(str(exc)), flush=True)
        sys.stdin.readline()
    else:
        print(json.dumps(None), flush=True)
        sys.stdin.readline()
        owner.release()
    print(json.dumps("ready"), flush=True)
    line = sys.stdin.readline()
"""

CROWD = """
inside = os.path.dirname(folder) + "/inside"
print('"ready"', flush=True)
sys.stdin.readline()
won = refused = 0
while won < int(sys.argv[3]):
    try:
        owner = Ownership.take(folder)
    except WorkdirLockedError:
        refused += 1
        continue
    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
    os.unlink(inside)
    won += 1
    if won % 3:
        owner.release()
    else:  # as one that dies: the record of a process that is no more
        path = f"{folder}/held.{owner._number}"
        with open(path) as file:
            words = file.read().split()
        words[3] = str(2**22 + 1)
        with open(f"{folder}/.dead", "w") as file:
            file.write(" ".join(words) + chr(10))
        os.rename(f"{folder}/.dead", path)
        owner.forget()
print(json.dumps([won, refused]))
"""

RUN = """
import asyncio
from xqute import Xqute
async def main():
    xq = Xqute(workdir=os.path.dirname(os.path.dirname(folder)))
    await xq.run_until_complete(keep_feeding=True)
    await (await xq.put("true")).wait()
    print('"ready"', flush=True)
    await asyncio.wait([xq.task])
asyncio.run(main())
"""


@pytest.fixture(params=[True, False], ids=["flock", "no flock"])
def has_flock(request, monkeypatch):
    """Each test is made on a file system with flock, and on one without."""
    if not request.param:

        def no_flock(fd, operation):
            raise OSError(37, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_flock)
    return request.param


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "w" / ".run" / "owner"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def start(start_driver, folder, has_flock, tmp_path):
    """Start a program that has `folder`, `has_flock` and `Ownership`."""

    def start_program(source, *args, **popen):
        return start_driver(BEGIN + source, folder, has_flock, *args, **popen)

    return start_program


def ask(process, line="go\n"):
    process.stdin.write(line)
    process.stdin.flush()


def hear(process):
    return json.loads(process.stdout.readline())


@pytest.mark.concurrency
def test_of_two_that_begin_at_once_one_gets_it_and_the_other_hears_from_whom(
    start, folder, has_flock
):
    drivers = [start(RACE, stdin=subprocess.PIPE) for _ in range(2)]
    racers = [driver.process for driver in drivers]
    pids = [racer.pid for racer in racers]
    wins = []
    for n in range(300):
        if n % 2:  # what they find is the record of a dead owner
            (free,) = folder.glob("free.*")
            record = free.rename(free.with_name(f"held{free.suffix}"))
            record.write_text("elsewhere another - 7 7 1700000000 -\n")
            os.utime(record, (1, 1))
        for racer in racers:
            ask(racer)
        answers = [hear(racer) for racer in racers]
        assert answers.count(None) == 1, (n, answers)
        winner = answers.index(None)
        wins.append(winner)
        assert f"pid {pids[winner]} on" in answers[1 - winner]
        for racer in racers:
            ask(racer, "end\n")
        assert [hear(racer) for racer in racers] == ["ready"] * 2
    assert set(wins) == {0, 1}, "there was no race"
    for driver in drivers:
        driver.finish()


@pytest.mark.concurrency
def test_never_are_two_of_many_in_it_at_once(start):
    crowd = [start(CROWD, 120, stdin=subprocess.PIPE) for _ in range(3)]
    assert [hear(driver.process) for driver in crowd] == ["ready"] * 3
    for driver in crowd:
        ask(driver.process)
    results = [driver.finish() for driver in crowd]
    assert [won for won, _ in results] == [120] * 3
    assert sum(refused for _, refused in results) > 0, "there was no race"


async def test_a_killed_owner_blocks_nobody(start, folder):
    driver = start(RUN)
    assert hear(driver.process) == "ready"
    with pytest.raises(WorkdirLockedError, match=f"pid {driver.process.pid} on"):
        Ownership.take(str(folder))
    driver.send(signal.SIGKILL)
    driver.process.wait()
    xq = Xqute(workdir=folder.parents[1])
    job = await xq.put("true")
    await xq.run_until_complete()
    assert job.rc == 0


def test_a_stopped_owner_is_alive_however_long_it_gives_no_sign_of_life(start, folder):
    driver = start(RUN)
    assert hear(driver.process) == "ready"
    driver.send(signal.SIGSTOP)
    os.waitid(os.P_PID, driver.process.pid, os.WSTOPPED)
    (record,) = folder.glob("held.*")
    os.utime(record, (1, 1))
    assert os.stat(record).st_mtime < STALE_S
    with pytest.raises(WorkdirLockedError, match=f"pid {driver.process.pid} on"):
        Ownership.take(str(folder))
    driver.send(signal.SIGCONT)
    driver.send(signal.SIGTERM)
    driver.finish()
    Ownership.take(str(folder)).release()


FORK = """
import asyncio
from xqute._engine.lock import WorkdirLock

class Run:
    def is_abandoned(self):
        return False

lock = WorkdirLock(os.path.dirname(folder), Run())
lock.acquire()
to_child, from_parent = os.pipe()
child = os.fork()
if not child:
    lock.release()
    try:
        WorkdirLock(os.path.dirname(folder), Run()).acquire()
        print("false", flush=True)
    except WorkdirLockedError:
        print("true", flush=True)
    os.close(from_parent)
    os.read(to_child, 1)
    os._exit(0)
sys.stdin.readline()
lock.release()
print(json.dumps(child), flush=True)
sys.stdin.readline()
os.close(from_parent)
os.waitpid(child, 0)
"""


def test_a_forked_child_neither_gives_back_nor_keeps_what_its_parent_has(start, folder):
    driver = start(FORK, stdin=subprocess.PIPE)
    assert hear(driver.process) is True
    with pytest.raises(WorkdirLockedError, match=f"pid {driver.process.pid} on"):
        Ownership.take(str(folder))  # the child has given back nothing
    ask(driver.process)
    assert hear(driver.process) > 0
    Ownership.take(str(folder)).release()  # and keeps nothing when its parent does
    driver.finish()


def test_a_forked_child_that_outlives_its_killed_parent_keeps_nothing(start, folder, is_alive):
    driver = start(FORK, stdin=subprocess.PIPE, start_new_session=True)
    assert hear(driver.process) is True
    driver.send(signal.SIGKILL)
    driver.process.wait()
    Ownership.take(str(folder)).release()


@pytest.mark.needs("mount", "unshare", root=True)
def test_a_workdir_that_is_mounted_elsewhere_is_the_same_workdir(folder, has_flock, tmp_path):
    """In a mount namespace of its own, which ends with the program."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    owner = Ownership.take(str(folder))
    script = 'mount --bind "$0" "$1" && exec "${@:2}"'
    program = BEGIN + "try:\n    Ownership.take(folder)\nexcept WorkdirLockedError as exc:\n"
    program += "    print(json.dumps(str(exc)))\n"
    argv = ["unshare", "-m", "bash", "-c", script, folder.parents[1], elsewhere]
    argv += [sys.executable, "-c", program, elsewhere / ".run" / "owner", str(has_flock)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert f"pid {os.getpid()} on" in json.loads(done.stdout)
    owner.release()


def test_an_abandoned_run_under_one_name_of_a_workdir_does_not_block_one_under_another(
    start_driver,
):
    driver = start_driver(
        """
        import asyncio, json, os, xqute
        os.makedirs("w")
        os.symlink("w", "link")

        async def begin():
            xq = xqute.Xqute(workdir="w")
            await xq.run_until_complete(keep_feeding=True)
            await (await xq.put("true")).wait()
            return xq

        loop = asyncio.new_event_loop()
        abandoned = loop.run_until_complete(begin())
        abandoned.task._log_destroy_pending = False
        loop.close()
        (job,) = xqute.run(["true"], workdir="link")
        print(json.dumps(job.rc))
        """
    )
    assert driver.finish() == 0
