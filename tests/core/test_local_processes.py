"""The local scheduler and processes: none is left, none of others is touched, ids are proof."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess

import pytest

from xqute import JobOutcome, JobStatus, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes", "each_way")


async def _until_text(until, job):
    return await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())


# --- what a job leaves --------------------------------------------------------------------------


@pytest.mark.parametrize("prescript", ["", "true"], ids=["plain", "hooked"])
async def test_a_background_child_in_its_group_ends_with_the_job(
    tmp_path, is_alive, until, prescript
):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"prescript": prescript})
    job = await xq.put(["bash", "-c", "sleep 60 & echo $!"])
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.outcome is JobOutcome.SUCCEEDED
    # It was sent KILL, and is gone as soon as the system has time for it.
    await until(lambda: not is_alive(int(job.stdout_file.read_text())), 5)


async def test_a_background_child_of_a_failed_job_ends_too(tmp_path, is_alive, until):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(
        ["bash", "-c", 'sh -c "trap : TERM; while :; do sleep 0.1; done" & echo $!; exit 2']
    )
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.rc == 2
    await until(lambda: not is_alive(int(job.stdout_file.read_text())), 5)


async def test_a_background_child_that_holds_stdout_does_not_hold_up_the_end(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(["bash", "-c", "sleep 60 & exit 0"])
    await asyncio.wait_for(job.wait(), 10)
    assert job.outcome is JobOutcome.SUCCEEDED
    await xq.run_until_complete()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_killed_job_leaves_no_descendant_in_its_group(
    tmp_path, until, job_processes, stubborn
):
    trap = 'trap "" TERM;' if stubborn else ""
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 0.2
    tree = f'{trap} bash -c "{trap} sleep 61 & sleep 62 & wait" & sleep 63 & echo ready; wait'
    job = await xq.put(["bash", "-c", tree])
    await _until_text(until, job)
    await until(lambda: len(job_processes()) >= 5)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.outcome is JobOutcome.KILLED
    assert job_processes() == []


@pytest.mark.concurrency
async def test_a_killed_job_leaves_no_descendant_in_its_session(tmp_path, until, job_processes):
    """`set -m` gives background jobs groups of their own, in the same session."""
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(
        ["bash", "-c", "set -m; sleep 61 & (trap '' TERM; sleep 62) & echo ready; sleep 63"]
    )
    await _until_text(until, job)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 15)
    assert job.outcome is JobOutcome.KILLED
    assert job_processes() == []


async def test_what_called_setsid_may_live_and_does_not_disturb(tmp_path, until, is_alive):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(["bash", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!; sleep 60"])
    escaped = int(await _until_text(until, job))
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.outcome is JobOutcome.KILLED
    if is_alive(escaped):
        os.kill(escaped, signal.SIGKILL)
    await until(lambda: not is_alive(escaped))


async def test_a_timeout_ends_the_whole_tree(tmp_path, job_processes):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 0.2
    tree = ["bash", "-c", '(trap "" TERM; while :; do sleep 0.1; done) & sleep 60 & wait']
    job = await xq.feed(tree, timeout=0.2)
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (job.outcome, job.cause) == (JobOutcome.TIMEOUT, "TIMEOUT")
    assert job_processes() == []


async def test_a_command_sees_term_and_has_its_grace_period(tmp_path, until):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.kill_grace_s = 20
    cleans = "trap 'sleep 0.2; echo cleaned; exit 9' TERM; echo ready; while :; do sleep 0.02; done"
    job = await xq.put(["bash", "-c", cleans])
    await _until_text(until, job)
    xq.cancel()
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert job.stdout_file.read_text() == "ready\ncleaned\n"
    assert (job.rc, job.outcome) == (9, JobOutcome.KILLED)


@pytest.mark.concurrency
async def test_a_kill_just_after_the_start_is_a_kill(tmp_path, job_processes, until):
    """The wrapper may not have its traps yet, nor its claims."""
    for n in range(15):
        xq = Xqute(workdir=tmp_path / str(n))
        job = await xq.put("sleep 60")
        await until(lambda: job.status >= JobStatus.SUBMITTED)  # noqa: B023
        xq.cancel()
        await asyncio.wait_for(xq.run_until_complete(), 10)
        assert job.outcome in (JobOutcome.KILLED, JobOutcome.CANCELLED)
        assert job_processes() == []


# --- identity -----------------------------------------------------------------------------------


@pytest.fixture
def stranger():
    """A live process that is nobody's job."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


async def _ended_job(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("true")
    await xq.run_until_complete()
    return job


async def test_a_jid_file_that_names_some_other_live_process_is_not_running(tmp_path, stranger):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    job.jid = stranger.pid
    assert not await scheduler.job_is_running(job)
    assert not await scheduler.job_is_submitted_or_running(job)


@pytest.mark.parametrize("with_claim", [False, True])
async def test_a_pid_that_was_used_again_is_not_the_job(tmp_path, stranger, with_claim):
    await _ended_job(tmp_path)
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    if with_claim:
        # As if the job had not ended and its process id were somebody else's now.
        for claim in job.metadir.glob("job.start.*"):
            host, boot, _, ticks, *rest = claim.read_text().split(" ")
            earlier = str(int(ticks) - 100)
            claim.write_text(" ".join([host, boot, str(stranger.pid), earlier, *rest]))
        for end in job.metadir.glob("job.end.*"):
            end.unlink()
    job.jid = stranger.pid
    assert not await scheduler.job_is_running(job)


async def test_a_stranger_is_never_killed(tmp_path, stranger):
    await _ended_job(tmp_path)
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    job.jid = stranger.pid
    job.status = JobStatus.SUBMITTED
    await asyncio.wait_for(scheduler.kill_job(job), 5)
    await asyncio.wait_for(scheduler.kill_running_jobs([job]), 5)
    assert stranger.poll() is None


async def test_a_new_run_submits_a_job_whose_old_jid_is_a_stranger_now(tmp_path, stranger):
    job = await _ended_job(tmp_path)
    job.jid_file.write_text(str(stranger.pid))
    xq = Xqute(workdir=tmp_path)
    job = await xq.put("echo new")
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (job.outcome, job.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "new\n")
    assert stranger.poll() is None


@pytest.mark.parametrize(
    "jid", ["", "abc", "-1", "0", "1", "99999999999999999999", "1 2", "\uff14\uff12"]
)
async def test_a_jid_that_is_no_process_id_is_not_running_and_kills_nobody(tmp_path, jid):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    job.jid = jid
    assert not await scheduler.job_is_running(job)
    await asyncio.wait_for(scheduler.kill_job(job), 5)


async def test_a_zombie_is_not_running(tmp_path, until):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, "true")
    job.jid = await scheduler.submit_job(job)
    # Nobody watches: the exited wrapper stays a zombie until it is asked about.
    await until(job.rc_file.exists)
    await until(lambda: _state(job.jid) == "Z")
    other = LocalScheduler(tmp_path)
    same = other.create_job(0, "true")
    assert not await other.job_is_running(same)
    assert not await scheduler.job_is_running(job)


def _state(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0]
    except FileNotFoundError:
        return None


async def test_a_running_job_is_running_and_an_ended_one_is_not(tmp_path, gate, until):
    scheduler = LocalScheduler(tmp_path)
    job = scheduler.create_job(0, gate.command())
    job.jid = await scheduler.submit_job(job)
    assert await scheduler.job_is_running(job)
    gate.open()
    await until(job.rc_file.exists)
    end_s = asyncio.get_running_loop().time() + 10
    while await scheduler.job_is_running(job):
        assert asyncio.get_running_loop().time() < end_s
        await asyncio.sleep(0.01)


# --- the driver ---------------------------------------------------------------------------------


async def test_other_children_of_the_program_are_left_to_it(tmp_path, stranger):
    mine = subprocess.Popen(["bash", "-c", "exit 7"])  # noqa: ASYNC220  # it is the point
    xq = Xqute(workdir=tmp_path, forks=2)
    for _ in range(4):
        await xq.put("true")
    await xq.run_until_complete()
    assert mine.wait(10) == 7
    assert stranger.poll() is None


async def test_asyncios_own_subprocesses_work_beside_a_run(tmp_path, gate):
    xq = Xqute(workdir=tmp_path)
    await xq.put(gate.command())
    process = await asyncio.create_subprocess_exec("bash", "-c", "echo hi; exit 4", stdout=-1)
    stdout, _ = await process.communicate()
    gate.open()
    await xq.run_until_complete()
    assert (stdout, process.returncode) == (b"hi\n", 4)


async def test_jobs_survive_what_kills_only_their_driver(
    tmp_path, start_driver, until, is_alive, gate
):
    """Nothing a job does writes to a pipe held by the driver."""
    driver = start_driver(
        """
        import sys, xqute
        xqute.run([sys.argv[1:]], workdir="w")
        """,
        *gate.command("echo out; echo err >&2; exit 3"),
    )
    folder = tmp_path / "w" / "0"
    status = folder / "job.status"
    await until(lambda: status.exists() and status.read_text() == "4")
    driver.process.kill()
    driver.process.wait()
    gate.open()
    await until(lambda: status.read_text() == "7")
    assert (folder / "job.rc").read_text() == "3"
    assert (folder / "job.stdout").read_text() == "out\n"
    assert (folder / "job.stderr").read_text() == "err\n"
