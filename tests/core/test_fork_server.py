"""Wrappers in processes that were forked beforehand: no job can tell, and no process is left."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys

import pytest

from xqute import JobOutcome, JobStatus, Xqute
from xqute._processes import fork_servers, sessions
from xqute._processes.fork_servers import ForkServer

pytestmark = [
    pytest.mark.usefixtures("job_processes"),
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="wrappers are not forked then"),
]

ABOUT_ITSELF = """
import json, os, resource, time
about = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

print(json.dumps({
    "environment": {k: v for k, v in os.environ.items() if not k.startswith("XQUTE_JOB_")},
    "streams": [os.readlink(f"/proc/self/fd/{fd}").rpartition("/")[2] for fd in range(3)],
    "descriptors": [fd for fd in range(1000) if is_open(fd)],
    "signals": [about[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
    "others": [about["Umask"], os.nice(0), os.getcwd()],
    "limits": [resource.getrlimit(limit) for limit in range(16)],
    "leads_its_group": os.getpgrp() == os.getppid(),
    "has_a_terminal": os.path.exists("/dev/tty") and not os.system("(: </dev/tty) 2>/dev/null"),
}))
"""


@pytest.fixture
def servers(monkeypatch):
    """The fork servers that are made."""
    made = []

    class Noted(ForkServer):
        def __init__(self, *args):
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(fork_servers, "ForkServer", Noted)
    return made


@pytest.fixture
def one(monkeypatch, every_wrapper_forked, servers):
    """Have one fork server run all; give the list that it will be in."""
    monkeypatch.setattr(fork_servers, "_MOST", 1)
    return servers


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return None


async def _ends(xq):
    await asyncio.wait_for(xq.run_until_complete(), 20)


# --- what a job sees ----------------------------------------------------------------------------


async def test_a_job_gets_what_it_would_get_from_a_shell_of_its_own(tmp_path, request, run_jobs):
    command = [sys.executable, "-c", ABOUT_ITSELF]
    (started,) = await run_jobs(tmp_path, command)
    servers = request.getfixturevalue("servers")
    request.getfixturevalue("every_wrapper_forked")
    (forked,) = await run_jobs(tmp_path, command)
    assert len(servers) == 1
    wanted, given = (json.loads(job.stdout_file.read_text()) for job in (started, forked))
    assert given == wanted
    assert given["descriptors"] == [0, 1, 2]
    assert given["leads_its_group"]
    assert not given["has_a_terminal"]


async def test_jobs_are_not_in_one_session_at_a_time(tmp_path, every_wrapper_forked, gate, until):
    xq = Xqute(workdir=tmp_path / "w", forks=3)
    jobs = [await xq.put(gate.command()) for _ in range(3)]
    await until(lambda: {job.status for job in jobs} == {JobStatus.RUNNING})
    taken = {os.getsid(int(job.jid)) for job in jobs}
    assert len(taken - {os.getsid(0)}) == 3
    gate.open()
    await _ends(xq)


@pytest.mark.parametrize("code", ["prescript", "postscript", "hook"])
async def test_code_of_a_user_has_a_shell_of_its_own(
    tmp_path, every_wrapper_forked, servers, make_plugin, run_jobs, code
):
    tells = 'echo "$$" >>"$XQUTE_METADIR/shells"'
    keywords = {"scheduler_opts": {code: tells}}
    if code == "hook":
        keywords = {"plugins": [make_plugin(on_jobcmd_prep=lambda scheduler, job: tells)]}
    jobs = await run_jobs(tmp_path, *["true"] * 3, **keywords)
    shells = (tmp_path / "w" / "shells").read_text().split()
    assert sorted(shells) == sorted(str(job.jid) for job in jobs)
    assert servers == []


async def test_no_start_up_file_is_read(
    tmp_path, every_wrapper_forked, servers, monkeypatch, run_jobs
):
    """Not as by a shell whose stdin is a socket, which bash takes for a login over the network."""
    (tmp_path / ".bashrc").write_text("echo read >>~/read; export READ=1")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SHLVL", raising=False)
    (job,) = await run_jobs(tmp_path, ["bash", "-c", "echo ${READ-no}"])
    assert len(servers) == 1
    assert job.stdout_file.read_text() == "no\n"
    assert not (tmp_path / "read").exists()


async def test_a_workdir_of_any_name_will_do(tmp_path, every_wrapper_forked, run_jobs):
    folder = tmp_path / "a b\n\u00e4\x01\udcff'"
    folder.mkdir()
    jobs = await run_jobs(folder, *["echo hi"] * 3)
    assert [job.stdout_file.read_text() for job in jobs] == ["hi\n"] * 3


async def test_jobs_follow_the_working_directory(tmp_path, one, monkeypatch):
    xq = Xqute(workdir=tmp_path / "w")
    monkeypatch.chdir(tmp_path)
    jobs = [await xq.put("pwd")]
    await jobs[0].wait()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    jobs += [await xq.put("pwd"), await xq.put("pwd")]
    await _ends(xq)
    told = [job.stdout_file.read_text().strip() for job in jobs]
    assert told == [str(tmp_path), *[str(tmp_path / "there")] * 2]
    assert len(one) == 2


# --- when one is made ---------------------------------------------------------------------------


async def test_for_one_job_alone_none_is_made(tmp_path, servers, run_jobs):
    await run_jobs(tmp_path, "true")
    assert servers == []


async def test_for_more_some_are_made_and_none_is_left(tmp_path, servers, run_jobs, is_alive):
    jobs = await run_jobs(tmp_path, *["true"] * 200, forks=2)
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 200
    assert 1 <= len(servers) <= fork_servers._MOST
    # Not even as zombies, for they are children of this process.
    assert {_state(server.pid) for server in servers} == {None}


async def test_none_is_left_when_a_run_is_over_though_they_are_slow(tmp_path, one, until, is_alive):
    xq = Xqute(workdir=tmp_path / "w")
    await (await xq.put("true")).wait()
    slow = [one[0].pid, await until(lambda: one[0].process)]
    for pid in slow:
        os.kill(pid, signal.SIGSTOP)
    await _ends(xq)
    assert not any(map(is_alive, slow))


async def test_jobs_run_where_none_can_be_made(tmp_path, monkeypatch, run_jobs):
    def fails(*args):
        raise BlockingIOError("no process can be made")

    monkeypatch.setattr(fork_servers, "ForkServer", fails)
    jobs = await run_jobs(tmp_path, *["true"] * 5, forks=2)
    assert [job.outcome for job in jobs] == [JobOutcome.SUCCEEDED] * 5


@pytest.mark.parametrize("has_child", [False, True])
async def test_none_outlives_a_driver_that_was_killed(
    tmp_path, start_driver, until, gate, is_alive, has_child
):
    """Not even if something lives on that the driver has forked itself."""
    driver = start_driver(
        """
        import asyncio, json, os, sys, time, warnings, xqute

        warnings.simplefilter("ignore", DeprecationWarning)  # it has threads, too
        has_child = sys.argv.pop(1) == "True"

        async def main():
            xq = xqute.Xqute(workdir="w", forks=2)
            servers = xq.scheduler._table._servers
            await (await xq.put("true")).wait()
            for _ in range(2):
                servers._start()
            while len(servers._ready) < 2:
                await asyncio.sleep(0.001)
            job = await xq.put(sys.argv[1:])
            while job.status < 4:
                await asyncio.sleep(0.001)
            assert len(servers._ready) == 1
            child = os.fork() if has_child else None
            if child == 0:
                time.sleep(60)
                os._exit(0)
            with open("told", "w") as file:
                json.dump([child, *(server.pid for server in servers._servers.values())], file)
            await asyncio.sleep(60)

        asyncio.run(main())
        """,
        has_child,
        *gate.command("exit 3"),
    )
    told = tmp_path / "told"
    await until(lambda: told.exists() and told.read_text().endswith("]"))
    child, *servers = json.loads(told.read_text())
    assert len(servers) == 2
    driver.process.kill()
    driver.process.wait()
    try:
        # Whoever runs nothing ends at once, the other when its job has.
        await until(lambda: sum(map(is_alive, servers)) <= 1)
        gate.open()
        await until(lambda: not any(map(is_alive, servers)))
        assert (tmp_path / "w" / "1" / "job.rc").read_text() == "3"
        assert child is None or is_alive(child)
    finally:
        if child is not None:
            os.kill(child, signal.SIGKILL)


# --- accidents ----------------------------------------------------------------------------------


@pytest.mark.concurrency
async def test_a_job_that_is_stopped_for_a_while_has_not_ended(tmp_path, one, gate, until):
    xq = Xqute(workdir=tmp_path / "w", forks=2)
    job = await xq.put(gate.command("exit 4"))
    await until(lambda: job.status is JobStatus.RUNNING)
    os.killpg(int(job.jid), signal.SIGSTOP)
    await until(lambda: _state(job.jid) == "T")
    other = await xq.put("true")  # by another way, for the one server is taken
    await other.wait()
    # It waits for a process, it does not look again and again.
    assert (_state(one[0].pid), job.status) == ("S", JobStatus.RUNNING)
    os.killpg(int(job.jid), signal.SIGCONT)
    gate.open()
    await _ends(xq)
    assert (job.rc, other.rc, job.trial_count) == (4, 0, 0)


@pytest.mark.concurrency
async def test_a_job_whose_fork_server_is_killed_runs_on_and_its_end_is_told(
    tmp_path, one, gate, until
):
    xq = Xqute(workdir=tmp_path / "w", error_strategy="retry", num_retries=1)
    job = await xq.put(gate.command("echo ran >>../ran; exit 3"), cwd=tmp_path / "w")
    await until((tmp_path / "w" / "0" / "job.status").exists)
    await until(lambda: job.status is JobStatus.RUNNING)
    os.kill(one[0].pid, signal.SIGKILL)
    await until(one[0].is_closed)
    assert job.status is JobStatus.RUNNING
    gate.open()
    await _ends(xq)
    assert job.rc == 3
    assert (job.trial_count, (tmp_path / "ran").read_text()) == (1, "ran\n" * 2)


@pytest.mark.concurrency
async def test_a_fork_server_that_is_killed_while_it_waits_is_replaced(tmp_path, one, until):
    xq = Xqute(workdir=tmp_path / "w")
    await (await xq.put("true")).wait()
    os.kill(one[0].pid, signal.SIGKILL)
    job = await xq.put("true")
    await _ends(xq)
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 0)


async def test_a_fork_server_that_is_killed_before_it_tells_of_a_fork_is_replaced(
    tmp_path, one, until, monkeypatch
):
    """Its socket does not tell of its end: the process that it has forked holds it, too."""
    heard = []
    hear = ForkServer.hear

    def hears_two_numbers(server):
        if server is not one[0]:
            return hear(server)
        said = hear(server)
        kept = said[: max(0, 2 - len(heard))]
        heard.extend(said)
        return kept

    monkeypatch.setattr(ForkServer, "hear", hears_two_numbers)
    xq = Xqute(workdir=tmp_path / "w")
    await (await xq.put("true")).wait()
    await until(lambda: len(heard) == 3)
    os.kill(one[0].pid, signal.SIGKILL)
    await until(lambda: _state(one[0].pid) == "Z")
    job = await xq.put("true")
    await _ends(xq)
    assert (job.outcome, job.trial_count, len(one)) == (JobOutcome.SUCCEEDED, 0, 2)
    assert _state(heard[2]) in (None, "Z")


@pytest.mark.concurrency
async def test_a_process_that_is_killed_while_it_waits_is_replaced(tmp_path, one, until):
    xq = Xqute(workdir=tmp_path / "w")
    await (await xq.put("true")).wait()
    waiting = await until(lambda: one[0].process)
    os.kill(waiting, signal.SIGKILL)
    await until(lambda: one[0].process not in (None, waiting))
    job = await xq.put("true")
    await _ends(xq)
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 0)
    assert len(one) == 1


@pytest.mark.concurrency
async def test_what_was_meant_for_a_process_that_was_killed_is_run_by_no_other(
    tmp_path, one, until
):
    """It is dead already, and the server cannot say so yet."""
    xq = Xqute(workdir=tmp_path / "w")
    await (await xq.put("true")).wait()
    waiting = await until(lambda: one[0].process)
    os.kill(one[0].pid, signal.SIGSTOP)
    await until(lambda: _state(one[0].pid) == "T")
    os.kill(waiting, signal.SIGKILL)
    await until(lambda: _state(waiting) == "Z")
    job = await xq.put(["bash", "-c", "echo ran >>../ran"], cwd=tmp_path / "w")
    await until(lambda: job.status >= JobStatus.SUBMITTED)
    os.kill(one[0].pid, signal.SIGCONT)
    await job.wait()
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 128 + signal.SIGKILL)
    after = await xq.put("true")
    await _ends(xq)
    assert after.outcome is JobOutcome.SUCCEEDED
    assert not (tmp_path / "ran").exists()
    assert len(one) == 2  # its session was swept


@pytest.mark.concurrency
@pytest.mark.parametrize("end", ["killed", "signalled"])
async def test_jobs_that_are_killed_leave_no_zombies_and_no_work_for_the_end(
    tmp_path, every_wrapper_forked, servers, monkeypatch, until, end
):
    """Each takes its server with it: these are buried while the run goes on."""
    looks = []
    members_of = sessions.members_of
    monkeypatch.setattr(sessions, "members_of", lambda ids: looks.append(ids) or members_of(ids))
    most = 0
    xq = Xqute(workdir=tmp_path / "w")
    for _ in range(30):
        if end == "killed":
            job = await xq.put("sleep 60")
            await until(lambda: job.status is JobStatus.RUNNING)  # noqa: B023
            await xq.scheduler.kill_job(job)
        else:
            job = await xq.put(["bash", "-c", "kill -KILL $PPID"])
        await job.wait()
        most = max(most, sum(_state(server.pid) == "Z" for server in servers))
    assert len(servers) >= 30
    assert most <= 3
    looks.clear()
    await _ends(xq)
    # For all together: until none that has just been killed is to be seen.
    assert len(looks) <= 12
    assert {_state(server.pid) for server in servers} == {None}


@pytest.mark.concurrency
async def test_a_kill_spares_what_another_job_has_left_in_the_session(
    tmp_path, one, until, is_alive
):
    """In groups of their own, which is why the end of a job leaves them alone."""
    xq = Xqute(workdir=tmp_path / "w")
    leaves = "set -m; sleep 61 >/dev/null & echo $!"
    first = await xq.put(["bash", "-c", leaves])
    await first.wait()
    second = await xq.put(["bash", "-c", f"{leaves}; wait"])
    mine = int(await until(lambda: second.stdout_file.exists() and second.stdout_file.read_text()))
    anothers = int(first.stdout_file.read_text())
    try:
        assert len(one) == 1
        assert os.getsid(anothers) == os.getsid(mine) == one[0].pid
        xq.cancel()
        await _ends(xq)
        assert (second.outcome, is_alive(mine)) == (JobOutcome.KILLED, False)
        assert is_alive(anothers)
    finally:
        os.kill(anothers, signal.SIGKILL)


@pytest.mark.concurrency
async def test_a_wrapper_that_is_killed_leaves_nothing_in_its_session(
    tmp_path, one, until, is_alive
):
    xq = Xqute(workdir=tmp_path / "w")
    job = await xq.put(["bash", "-c", "set -m; sleep 61 >/dev/null & echo $!; wait"])
    left = int(await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text()))
    os.killpg(int(job.jid), signal.SIGKILL)
    await _ends(xq)
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 128 + signal.SIGKILL)
    await until(lambda: not is_alive(left))


@pytest.mark.concurrency
@pytest.mark.parametrize("is_server_lost", [False, True])
async def test_a_kill_knows_what_is_a_jobs_where_jobs_see_other_paths(
    tmp_path, one, until, is_alive, is_server_lost
):
    (tmp_path / "real").mkdir()
    (tmp_path / "mounted").symlink_to("real")
    xq = Xqute(workdir=tmp_path / "real", scheduler_opts={"mounted_workdir": tmp_path / "mounted"})
    job = await xq.put(["bash", "-c", "set -m; sleep 61 >/dev/null & echo $!; wait"])
    left = int(await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text()))
    assert os.getsid(left) == one[0].pid
    if is_server_lost:
        os.kill(one[0].pid, signal.SIGKILL)
        await until(one[0].is_closed)
    xq.cancel()
    await _ends(xq)
    assert job.outcome is JobOutcome.KILLED
    await until(lambda: not is_alive(left))
