"""The local scheduler: what a job gets from its driver, what it leaves, and how its end is told."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from xqute import JobOutcome, JobStatus, Xqute

pytestmark = pytest.mark.usefixtures("job_processes", "each_way")


# --- what a job gets ----------------------------------------------------------------------------


async def test_stdin_is_dev_null(tmp_path, run_jobs):
    jobs = await run_jobs(tmp_path, "readlink /proc/self/fd/0", "cat")
    assert jobs[0].stdout_file.read_text() == "/dev/null\n"
    assert (jobs[1].rc, jobs[1].stdout_file.read_text()) == (0, "")


async def test_stdout_and_stderr_go_to_their_files_as_bytes(tmp_path, run_jobs):
    (job,) = await run_jobs(tmp_path, ["bash", "-c", r"printf 'a\xff\0b'; printf 'e\xfe' >&2"])
    assert job.stdout_file.read_bytes() == b"a\xff\0b"
    assert job.stderr_file.read_bytes() == b"e\xfe"


#: The descriptor by which bash reads the folder is closed when it looks.
LIST_FDS = ["bash", "-c", "for fd in /proc/$$/fd/*; do [[ -L $fd ]] && echo ${fd##*/}; done"]


async def test_no_descriptor_of_the_driver_is_inherited(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=2)
    plain = await xq.put(LIST_FDS)
    await plain.wait()
    # One that is inheritable, and opened when jobs have run already.
    fd = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(fd, True)
    try:
        jobs = [plain, await xq.put(LIST_FDS), await xq.put(LIST_FDS)]
        await xq.run_until_complete()
    finally:
        os.close(fd)
    for job in jobs:
        assert sorted(map(int, job.stdout_file.read_text().split())) == [0, 1, 2]


async def test_sigpipe_ends_a_job_as_it_does_in_a_shell(tmp_path, run_jobs):
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
    (job,) = await run_jobs(tmp_path, ["bash", "-c", "kill -PIPE $$; echo survived"])
    assert (job.rc, job.stdout_file.read_text()) == (128 + signal.SIGPIPE, "")


async def test_signals_that_the_driver_ignores_or_blocks_are_default_for_a_job(tmp_path, run_jobs):
    ignored = [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXFSZ]
    before = {sig: signal.signal(sig, signal.SIG_IGN) for sig in ignored if sig != signal.SIGINT}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])
    try:
        jobs = await run_jobs(
            tmp_path,
            *(["bash", "-c", f"kill -{sig.name[3:]} $$; echo survived"] for sig in ignored),
        )
        (mask,) = await run_jobs(
            tmp_path / "2", ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for sig, handler in before.items():
            signal.signal(sig, handler)
    assert [job.rc for job in jobs] == [128 + sig for sig in ignored]
    masks = [int(line.split()[1], 16) for line in mask.stdout_file.read_text().splitlines()]
    # 32 and 33 are the C library's own: its posix_spawn has them ignored.
    assert [mask & ~(0b11 << 31) for mask in masks] == [0, 0]


async def test_the_environment_of_the_driver_is_inherited(tmp_path, monkeypatch, run_jobs):
    monkeypatch.setenv("OF_THE_DRIVER", "there")
    (job,) = await run_jobs(tmp_path, ["bash", "-c", "echo $OF_THE_DRIVER"])
    assert job.stdout_file.read_text() == "there\n"


async def test_a_hijacking_environment_cannot_harm_the_wrapper(tmp_path, monkeypatch, run_jobs):
    (tmp_path / "rc").write_text("echo hijacked; exit 9")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "rc"))
    monkeypatch.setenv("SHELLOPTS", "errexit:nounset")
    monkeypatch.setenv("BASH_FUNC_printf%%", "() { exit 8; }")
    monkeypatch.setenv("BASH_FUNC_trap%%", "() { exit 8; }")
    jobs = await run_jobs(tmp_path, "echo hi", "false")
    assert [job.rc for job in jobs] == [0, 1]
    assert jobs[0].stdout_file.read_text() == "hi\n"


async def test_a_job_has_a_group_of_its_own_and_is_in_a_session_of_no_others(
    tmp_path, run_jobs, each_way
):
    tells = ["bash", "-c", "read -ra s </proc/self/stat; echo ${s[4]} ${s[5]}"]
    (job,) = await run_jobs(tmp_path, tells)
    group, session = job.stdout_file.read_text().split()
    assert group == str(job.jid)
    assert int(session) != os.getsid(0)
    # A fork server leads that of its processes.
    assert (session == group) == (each_way == "started")


# --- exit codes ---------------------------------------------------------------------------------


async def test_exit_codes_are_exact(tmp_path, run_jobs):
    codes = [
        0,
        1,
        2,
        3,
        42,
        119,
        120,
        121,
        122,
        123,
        124,
        125,
        126,
        127,
        128,
        129,
        137,
        143,
        200,
        255,
    ]
    jobs = await run_jobs(tmp_path, *(["bash", "-c", f"exit {code}"] for code in codes), forks=4)
    assert [job.rc for job in jobs] == codes
    assert [job.outcome for job in jobs] == [
        JobOutcome.FAILED if code else JobOutcome.SUCCEEDED for code in codes
    ]
    assert jobs[4].cause == "EXIT_CODE"
    assert "42" in jobs[4].reason


@pytest.mark.parametrize("sig", ["TERM", "KILL", "SEGV", "INT", "HUP", "USR1", "ABRT"])
async def test_a_death_by_signal_n_is_128_plus_n(tmp_path, sig, run_jobs):
    number = signal.Signals[f"SIG{sig}"]
    (job,) = await run_jobs(tmp_path, ["bash", "-c", f"ulimit -c 0; kill -{sig} $$"])
    assert (job.rc, job.outcome, job.cause) == (128 + number, JobOutcome.FAILED, "SIGNAL")
    assert f"SIG{sig}" in job.reason


async def test_a_command_killed_from_outside_has_failed_with_cause_signal(tmp_path, until):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(["bash", "-c", "echo $$; exec sleep 60"])
    pid = await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    os.kill(int(pid), signal.SIGKILL)
    await xq.run_until_complete()
    assert (job.rc, job.outcome, job.cause) == (137, JobOutcome.FAILED, "SIGNAL")


@pytest.mark.parametrize("prescript", ["", "true"], ids=["plain", "hooked"])
@pytest.mark.concurrency
async def test_a_wrapper_killed_from_outside_takes_the_job_with_it(
    tmp_path, until, job_processes, prescript
):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"prescript": prescript})
    job = await xq.put(["bash", "-c", "echo ready; sleep 60"])
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    os.kill(int(job.jid), signal.SIGKILL)
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (job.rc, job.outcome, job.cause) == (137, JobOutcome.FAILED, "SIGNAL")
    assert job.status is JobStatus.FAILED
    assert job.rc_file.read_text() == "137"
    await until(lambda: job_processes() == [])


async def test_such_a_death_is_tried_again_under_retry(tmp_path, until):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1)
    job = await xq.put(["bash", "-c", "((XQUTE_JOB_TRIAL)) || { echo ready; sleep 60; }"])
    await until(lambda: job.stdout_file.exists() and job.stdout_file.read_text())
    os.kill(int(job.jid), signal.SIGKILL)
    await asyncio.wait_for(xq.run_until_complete(), 10)
    assert (job.trial_count, job.outcome) == (1, JobOutcome.SUCCEEDED)


async def test_the_end_is_heard_by_the_exit_not_by_asking(tmp_path):
    xq = Xqute(workdir=tmp_path, scheduler_opts={"recheck_interval": 1000})
    xq.scheduler.first_recheck_s = 1000
    for n in range(10):
        await xq.put(["bash", "-c", f"exit {n}"])
    await asyncio.wait_for(xq.run_until_complete(), 5)
    assert [job.rc for job in xq.jobs] == list(range(10))
