"""The local scheduler and many jobs: threads, descriptors, reaping, with and without pidfd."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from xqute import JobOutcome, JobStatus, Xqute
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes", "each_way")


async def test_a_thousand_jobs_all_succeed(tmp_path):
    xq = Xqute(workdir=tmp_path, forks=8)
    for _ in range(1000):
        await xq.put("true")
    await xq.run_until_complete()
    assert len(xq.jobs) == 1000
    assert {(job.outcome, job.rc, job.status) for job in xq.jobs} == {
        (JobOutcome.SUCCEEDED, 0, JobStatus.FINISHED)
    }


async def test_no_thread_is_made_for_a_child(tmp_path, until):
    xq = Xqute(workdir=tmp_path, forks=20)
    before = threading.active_count()
    for _ in range(20):
        await xq.put("sleep 60")
    await until(lambda: {job.status for job in xq.jobs} == {JobStatus.RUNNING})
    assert threading.active_count() <= before + 1
    xq.cancel()
    await xq.run_until_complete()


async def test_jobs_run_side_by_side(tmp_path, run_jobs):
    """Each of eight waits until all eight are there."""
    folder = tmp_path / "there"
    folder.mkdir()
    wait = f"until [[ $(ls {folder} | wc -l) == 8 ]]; do sleep 0.01; done"
    jobs = await run_jobs(
        tmp_path, *[["bash", "-c", f"touch {folder}/$XQUTE_JOB_INDEX; {wait}"]] * 8, forks=8
    )
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}


def test_few_descriptors_are_enough_for_many_jobs(start_driver):
    driver = start_driver(
        """
        import json, resource, xqute
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 64))
        commands = [["bash", "-c", f"sleep 0.2; ulimit -Sn; exit {n % 3}"] for n in range(80)]
        jobs = xqute.run(commands, workdir="w", forks=60)
        print(json.dumps([
            [job.rc for job in jobs] == [n % 3 for n in range(80)],
            sorted({job.stdout_file.read_text() for job in jobs}),
        ]))
        """
    )
    assert driver.finish() == [True, ["32\n"]]


def test_a_descriptor_beyond_the_limit_that_the_driver_was_started_with_does_no_harm(start_driver):
    fd = fcntl.fcntl(0, fcntl.F_DUPFD, 200)
    try:
        driver = start_driver(
            """
            import json, resource, sys, xqute
            resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
            jobs = xqute.run([["test", "-e", f"/proc/self/fd/{sys.argv[1]}"]], workdir="w")
            print(json.dumps([job.rc for job in jobs]))
            """,
            fd,
            pass_fds=(fd,),
        )
    finally:
        os.close(fd)
    assert driver.finish() in ([0], [1])


@pytest.mark.parametrize("how", ["missing", "failing"])
async def test_without_pidfd_it_works_too(tmp_path, monkeypatch, how, run_jobs):
    def fail(pid, flags=0):
        raise OSError(38, "Function not implemented")

    if how == "missing":
        monkeypatch.delattr(os, "pidfd_open")
    else:
        monkeypatch.setattr(os, "pidfd_open", fail)
    jobs = await run_jobs(
        tmp_path, *(["bash", "-c", f"exit {n}"] for n in range(6)), "sleep 0.1", forks=3
    )
    assert [job.rc for job in jobs] == [0, 1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("ignore", ["signal.SIG_IGN", "reap"])
def test_a_host_program_that_reaps_every_child_loses_no_exit_code(start_driver, ignore):
    driver = start_driver(
        """
        import json, os, signal, sys, xqute
        def reap(number, frame):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass
        signal.signal(signal.SIGCHLD, eval(sys.argv[1]))
        jobs = xqute.run([["bash", "-c", f"exit {n}"] for n in range(8)], workdir="w", forks=3)
        print(json.dumps([job.rc for job in jobs]))
        """,
        ignore,
    )
    assert driver.finish() == list(range(8))


@pytest.mark.parametrize("submits_by_itself", [False, True])
async def test_a_run_leaves_no_descriptor_and_no_zombie(tmp_path, submits_by_itself, run_jobs):
    class Overriding(LocalScheduler):
        async def submit_job(self, job):
            return await super().submit_job(job)

    scheduler = Overriding if submits_by_itself else "local"
    await run_jobs(tmp_path / "warm", "true")
    before = sorted(os.listdir("/proc/self/fd")), _children()
    await run_jobs(tmp_path, *["true"] * 8, forks=4, scheduler=scheduler)
    assert (sorted(os.listdir("/proc/self/fd")), _children()) == before


def _children():
    """The ids of the children of this process, zombies included."""
    return Path("/proc/self/task", str(os.getpid()), "children").read_text().split()
