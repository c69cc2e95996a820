"""What a real Grid Engine does to jobs, and what is told of them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import signal
import time
from contextlib import asynccontextmanager

import pytest
from xqute.schedulers.sge_scheduler import SgeScheduler

from xqute import JobCause, JobOutcome, JobStatus, Xqute, logger
from xqute.scheduler import Phase
from xqute.testing import bash, until

pytestmark = [pytest.mark.needs("sge_qmaster", "sge_execd"), pytest.mark.usefixtures("as_user")]

#: A command that leaves a trace of each start.
ONCE = 'echo run >>"$XQUTE_JOB_METADIR/runs"; '


def tune(scheduler):
    scheduler.recheck_interval = 0.5
    scheduler.first_recheck_s = 0.2
    scheduler.lost_grace_s = 1.0
    scheduler.accounting_lag_s = 2.0
    scheduler.kill_grace_s = 0.5
    scheduler.kill_timeout_s = 5.0
    scheduler.linger_s = 0.2


@asynccontextmanager
async def running(folder, *, forks=10, prefix=None, tuned=None, **opts):
    """A run on this Grid Engine, which is over within the deadline."""
    async with asyncio.timeout(90):
        xq = Xqute(
            "sge",
            workdir=folder / "run",
            forks=forks,
            jobname_prefix=prefix,
            scheduler_opts=opts,
        )
        tune(xq.scheduler)
        for name, value in (tuned or {}).items():
            setattr(xq.scheduler, name, value)
        async with xq:
            yield xq


async def until_accounting(folder, cell):
    """Wait until there is some: its file is made when the first job has ended."""
    [job] = await run(folder / "first", bash("exit 0"))
    await until(lambda: "jobname" in cell.run("qacct", "-j", job.jid, check=False), "it is there")


async def run(folder, *commands, **keywords):
    async with running(folder, **keywords) as xq:
        for command in commands:
            await xq.feed(command)

    return xq.jobs


async def until_runs(*jobs):
    for job in jobs:
        await until(lambda job=job: job.status is JobStatus.RUNNING, f"{job!r} runs", 40)


async def until_ready(job):
    """Its command is, and qsub has said its id, which may come later."""
    ready = job.metadir / "job.stdout"
    await until(lambda: ready.exists() and ready.read_text() == "ready\n", f"{job!r} is ready", 40)
    await until(lambda: job.jid is not None, f"{job!r} has an id", 40)


def runs_of(job):
    """How often the command of a job was started."""
    file = job.metadir / "runs"
    return file.read_text().count("run\n") if file.exists() else 0


# --- ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rc", [99, 100])
async def test_exit_codes_that_grid_engine_acts_upon_are_as_good_as_any(tmp_path, cell, rc):
    """99 would have it started again, and 100 put in error."""
    [job] = await run(tmp_path, bash(f"{ONCE}exit {rc}"))
    assert (job.rc, job.outcome, job.cause) == (rc, JobOutcome.FAILED, JobCause.EXIT_CODE)
    await until(lambda: not cell.run("qstat"), "the queue is empty")
    assert runs_of(job) == 1


async def test_a_job_that_somebody_deletes_while_it_runs_says_so(tmp_path, cell):
    async with running(tmp_path) as xq:
        job = await xq.feed(bash("trap 'exit 3' TERM; echo ready; sleep 60 & wait"))
        await until_ready(job)
        cell.run("qdel", job.jid)
        await job.wait()
    assert (job.rc, job.outcome, job.cause) == (3, JobOutcome.FAILED, JobCause.REQUESTED)
    assert "deleted (qdel)" in job.reason


async def test_a_job_that_somebody_deletes_while_it_is_pending_says_so(tmp_path, cell):
    async with running(tmp_path, h=True) as xq:
        job = await xq.feed(bash(ONCE))
        await until(lambda: job.status is JobStatus.SUBMITTED, "it is submitted")
        cell.run("qdel", job.jid)
    assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.REQUESTED)
    assert "removed from the queue" in job.reason
    assert runs_of(job) == 0


async def test_the_end_of_the_walltime_is_told_with_the_true_exit_code(tmp_path, cell):
    deaf, cleans = await run(
        tmp_path,
        bash("trap '' TERM; sleep 60"),
        bash("trap 'exit 7' TERM; sleep 60 & wait"),
        resources={"walltime_s": 2},
    )
    assert (deaf.rc, deaf.outcome, deaf.cause) == (137, JobOutcome.FAILED, JobCause.TIME_LIMIT)
    assert (cleans.rc, cleans.outcome, cleans.cause) == (7, JobOutcome.FAILED, JobCause.TIME_LIMIT)


async def test_without_notify_the_accounting_tells_of_the_walltime(tmp_path, cell):
    """All is killed at once then, the wrapper too."""
    [job] = await run(tmp_path, bash("sleep 60"), notify=False, resources={"walltime_s": 2})
    assert (job.rc, job.outcome, job.cause) == (137, JobOutcome.FAILED, JobCause.TIME_LIMIT)
    assert "h_rt" in job.reason


async def test_a_job_is_warned_before_its_walltime(tmp_path, cell):
    script = "trap 'echo warned; exit 5' USR1; sleep 60 & wait"
    [job] = await run(tmp_path, bash(script), resources={"walltime_s": 30}, signal_before_end_s=28)
    assert (job.rc, job.stdout_file.read_text()) == (5, "warned\n")


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ({"e": "/xqute-no-such-folder/err"}, "xqute-no-such-folder/err"),
        ({"o": "/xqute-no-such-folder/out"}, 'can\'t open output file "/xqute-no-such-folder/out"'),
    ],
)
async def test_a_job_in_error_has_failed_with_the_reason_and_is_removed(
    tmp_path, cell, opts, words
):
    jobs = await run(tmp_path, bash(ONCE), bash(ONCE), **opts)
    for job in jobs:
        assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.SETUP)
        assert words in job.reason
        assert runs_of(job) == 0
    assert cell.run("qstat") == ""


async def test_the_end_of_the_last_start_is_that_of_a_job_which_grid_engine_starts_again(
    tmp_path, cell
):
    """It may where it was told to, with `r`; the first start makes a success of being ended."""
    again = "((RESTARTED)) && exit $1; trap 'exit 0' TERM; echo ready; sleep 60 & wait"
    async with running(tmp_path, r="y") as xq:
        alone = await xq.feed(bash(f"{ONCE}{again}", "4"))
        await until_ready(alone)
        tasks = [await xq.feed(bash(f"{ONCE}{again}", rc)) for rc in ("5", "0")]
        once = await xq.feed(bash(f"{ONCE}exit 6"))
        for job in tasks:
            await until_ready(job)
        for job in (alone, *tasks):
            cell.configure("qmod", "-rj", job.jid)
    assert [(job.rc, job.outcome) for job in (alone, *tasks, once)] == [
        *((4, JobOutcome.FAILED), (5, JobOutcome.FAILED)),
        *((0, JobOutcome.SUCCEEDED), (6, JobOutcome.FAILED)),
    ]
    assert [job.cause for job in (alone, tasks[0], once)] == [JobCause.EXIT_CODE] * 3
    assert [runs_of(job) for job in (alone, *tasks, once)] == [2, 2, 2, 1]
    assert {job.trial_count for job in xq.jobs} == {0}


async def test_a_job_that_may_start_again_and_is_deleted_says_so(tmp_path, cell):
    async with running(tmp_path, r="y") as xq:
        job = await xq.feed(bash(f"{ONCE}trap 'exit 3' TERM; echo ready; sleep 60 & wait"))
        await until_ready(job)
        cell.run("qdel", job.jid)
    assert (job.rc, job.outcome, job.cause) == (3, JobOutcome.FAILED, JobCause.REQUESTED)
    assert runs_of(job) == 1


async def test_a_job_that_is_removed_by_force_is_no_success(tmp_path, cell):
    """The accounting says that it ended with 0."""
    async with running(tmp_path) as xq:
        job = await xq.feed(bash("echo ready; exec sleep 60"))
        await until_ready(job)
        cell.configure("qdel", "-f", job.jid)
    assert job.outcome in (JobOutcome.FAILED, JobOutcome.LOST)
    assert job.rc != 0
    assert job.reason


async def test_a_job_that_loses_its_shepherd_is_no_success(tmp_path, cell):
    """The accounting says that it ended with 0."""
    async with running(tmp_path) as xq:
        job = await xq.feed(bash("echo ready; exec sleep 60"))
        await until_ready(job)
        [pid] = cell.folder.glob(f"spool/execd/*/active_jobs/{job.jid}.1/pid")
        with cell.as_root():
            os.kill(int(pid.read_text()), signal.SIGKILL)
    assert job.outcome in (JobOutcome.FAILED, JobOutcome.LOST)
    assert job.rc != 0
    assert job.reason


async def test_without_any_accounting_only_what_leaves_no_word_is_lost(tmp_path, cell):
    async with running(tmp_path, qacct="xqute-no-such-qacct") as xq:
        good = await xq.feed(bash("exit 0"))
        bad = await xq.feed(bash("exit 3"))
        lost = await xq.feed(bash('echo ready; exec -a "$1" sleep 60', "xqute-lost"))
        await until_ready(lost)
        [claim] = lost.metadir.glob("job.start.*")
        os.kill(int(claim.read_text().split()[2]), signal.SIGKILL)
    assert (good.outcome, good.rc) == (JobOutcome.SUCCEEDED, 0)
    assert (bad.outcome, bad.rc) == (JobOutcome.FAILED, 3)
    assert (lost.outcome, lost.rc) == (JobOutcome.LOST, -3)


async def test_an_accounting_that_is_written_late_is_waited_for(tmp_path, cell):
    """As Grid Engine comes it writes every 15 seconds what it has heard of meanwhile."""
    late = "accounting=true reporting=false flush_time=00:00:15 joblog=false sharelog=00:00:00"
    await until_accounting(tmp_path, cell)
    with changed(cell, reporting_params=late):
        async with running(tmp_path, tuned={"accounting_lag_s": 20.0}) as xq:
            job = await xq.feed(bash("echo ready; sleep 60"))
            await until_ready(job)
            [claim] = job.metadir.glob("job.start.*")
            os.kill(int(claim.read_text().split()[2]), signal.SIGKILL)
    assert (job.rc, job.outcome, job.cause) == (137, JobOutcome.FAILED, JobCause.SIGNAL)


async def test_what_grid_engine_loses_before_it_starts_is_submitted_again(tmp_path, cell):
    """An overloaded one does; here a qacct of our own says so of a job that was deleted."""
    said = "====\njobname {0}\njobnumber {1}\ntaskid undefined\nfailed 21 : x\nexit_status 0\n"
    qacct = tmp_path / "qacct"
    qacct.write_text('#!/bin/bash\ncat "$0.said"\n')
    qacct.chmod(0o755)
    async with running(tmp_path, qacct=str(qacct), h=True) as xq:
        job = await xq.feed(bash(f"{ONCE}exit 0"))
        await until(lambda: job.status is JobStatus.SUBMITTED, "it is submitted")
        name = xq.scheduler.submission_name(xq.scheduler.submission_key(job))
        (tmp_path / "qacct.said").write_text(said.format(name, job.jid))
        xq.scheduler.config.pop("h")
        cell.run("qdel", job.jid)
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, 1)
    assert runs_of(job) == 1


async def test_an_accounting_that_is_slow_is_heard_about_all_jobs_in_the_end(
    tmp_path, cell, monkeypatch
):
    """It takes longer for all of them than the run waits for an answer."""
    monkeypatch.setattr("xqute._engine.reconciler._ANSWER_TIMEOUT_S", 4.0)
    monkeypatch.setattr("xqute._engine.reconciler._TOGETHER_S", 60.0)
    qacct = tmp_path / "qacct"
    qacct.write_text(f'#!/bin/bash\nsleep 0.5\nexec {shutil.which("qacct")} "$@"\n')
    qacct.chmod(0o755)
    tuned = {"accounting_budget_s": 1.0}
    async with running(
        tmp_path, qacct=str(qacct), array_size=1, h=True, forks=20, tuned=tuned
    ) as xq:
        await until_accounting(tmp_path, cell)
        jobs = [await xq.feed(bash(ONCE)) for _ in range(12)]
        for job in jobs:
            await until(lambda: job.status is JobStatus.SUBMITTED, "submitted")  # noqa: B023
        cell.run("qdel", *(job.jid for job in jobs))
    told = {(job.outcome, job.cause) for job in jobs}
    assert told == {(JobOutcome.FAILED, JobCause.REQUESTED)}


async def test_a_host_that_does_not_see_the_workdir_is_named_as_the_cause(tmp_path, cell):
    [job] = await run(
        tmp_path,
        bash(ONCE),
        mounted_workdir="/xqute-mounted-nowhere",
        tuned={"visible_within_s": 0.3},
    )
    assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.SETUP)
    assert "cannot see" in job.reason


# --- what a job is given -------------------------------------------------------------------------


async def test_nothing_secret_is_in_what_grid_engine_spools(tmp_path, cell):
    """Its copy of the script can be read by everybody."""
    async with running(tmp_path) as xq:
        job = await xq.feed(bash('cat "$JOB_SCRIPT"'), envs={"TOKEN": "open-sesame"})
    assert (job.rc, "sesame" in job.stdout_file.read_text()) == (0, False)
    assert "xq_workdir" in job.stdout_file.read_text()


async def test_a_large_environment_arrives_whole(tmp_path, cell):
    """Grid Engine itself cuts a variable at ten thousand characters."""
    async with running(tmp_path) as xq:
        job = await xq.feed(bash('printf %s "${#LARGE}"'), envs={"LARGE": "x" * 100_000})
    assert job.stdout_file.read_text() == "100000"


async def test_a_job_may_wait_for_another_which_may_fail(tmp_path, cell):
    """Grid Engine asks no more of `hold_jid` than that it has ended."""
    script = 'until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.1; done; '
    async with running(tmp_path) as xq:
        first = await xq.feed(bash(f"{script} echo >$XQUTE_METADIR/over; exit 3"))
        await until_runs(first)
        second = await xq.feed(
            bash('[[ -e "$XQUTE_METADIR/over" ]]'), scheduler_opts={"hold_jid": first.jid}
        )
        await until(lambda: "hqw" in cell.run("qstat"), "the second is held")
        (tmp_path / "run" / "go").touch()
    assert (first.rc, second.rc) == (3, 0)


@pytest.mark.parametrize("prefix", ["1 odd:näme*?/\\@", "-", "x" * 300])
async def test_a_prefix_of_odd_characters_is_no_obstacle(tmp_path, cell, prefix):
    [job] = await run(tmp_path, bash("exit 0"), prefix=prefix)
    assert job.outcome == JobOutcome.SUCCEEDED


async def test_jobs_run_where_the_driver_does(tmp_path, cell, monkeypatch):
    folder = tmp_path / "a b'c"
    folder.mkdir()
    monkeypatch.chdir(folder)
    [job] = await run(tmp_path, ["pwd"])
    assert job.stdout_file.read_text() == f"{folder}\n"


async def test_cpus_are_slots_of_the_named_environment(tmp_path, cell):
    [job] = await run(tmp_path, bash('echo "$NSLOTS $PE"'), pe="smp", resources={"cpus": 2})
    assert job.stdout_file.read_text() == "2 smp\n"


async def test_native_options_of_one_job_go_before_those_of_all(tmp_path, cell):
    async with running(tmp_path, A="ours") as xq:
        first = await xq.feed(bash('echo "$SGE_ACCOUNT"'))
        second = await xq.feed(bash('echo "$SGE_ACCOUNT"'), scheduler_opts={"A": "mine"})
    assert (first.stdout_file.read_text(), second.stdout_file.read_text()) == ("ours\n", "mine\n")


# --- arrays --------------------------------------------------------------------------------------


async def test_jobs_with_equal_options_go_as_one_array(tmp_path, cell):
    async with running(tmp_path, forks=40) as xq:
        for rc in range(10):
            await xq.feed(bash(f"exit {rc}"))
        other = await xq.feed(bash("exit 0"), resources={"walltime_s": 600})
    assert [job.rc for job in xq.jobs] == [*range(10), 0]
    assert len({job.jid.partition(".")[0] for job in xq.jobs[:10]}) == 1
    assert "." not in other.jid


async def test_max_running_is_the_arrays_limit(tmp_path, cell):
    async with running(tmp_path, forks=40, max_running=2) as xq:
        jobs = [await xq.feed(bash("sleep 1")) for _ in range(4)]
        await until(lambda: jobs[-1].jid is not None, "all are submitted")
        told = cell.run("qstat", "-j", jobs[0].jid.partition(".")[0])
        ends = [await job.wait() for job in jobs]
    assert any(line.split() == ["maximum", "concurrency:", "2"] for line in told.splitlines()), told
    assert ends == [JobOutcome.SUCCEEDED] * 4


async def test_tasks_are_killed_one_by_one_whether_they_run_or_wait(tmp_path, cell):
    async with running(tmp_path, forks=40, max_running=2) as xq:
        script = 'until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.1; done'
        jobs = [await xq.feed(bash(script)) for _ in range(6)]
        await until_runs(*jobs[:2])
        for job in (jobs[1], jobs[4]):
            await xq.scheduler.kill_job_and_update_status(job)
        (tmp_path / "run" / "go").touch()
    outcomes = [job.outcome for job in jobs]
    assert (outcomes.pop(4), outcomes.pop(1)) == (JobOutcome.CANCELLED, JobOutcome.KILLED)
    assert outcomes == [JobOutcome.SUCCEEDED] * 4


async def test_an_array_larger_than_the_site_allows_goes_in_parts(tmp_path, cell):
    with changed(cell, max_aj_tasks=4):
        jobs = await run(tmp_path, *[bash(f"{ONCE}exit {rc}") for rc in range(10)], forks=40)
    assert [(job.rc, job.trial_count) for job in jobs] == [(rc, 0) for rc in range(10)]
    assert [runs_of(job) for job in jobs] == [1] * 10


@pytest.mark.parametrize("array_size", [1, 2, 1000])
async def test_a_limit_of_jobs_delays_and_is_not_charged(tmp_path, cell, array_size):
    with changed(cell, max_u_jobs=3):
        commands = [bash(f"{ONCE}sleep 0.2") for _ in range(8)]
        jobs = await run(tmp_path, *commands, forks=40, array_size=array_size)
    assert [(job.outcome, job.trial_count) for job in jobs] == [(JobOutcome.SUCCEEDED, 0)] * 8
    assert [runs_of(job) for job in jobs] == [1] * 8


async def test_a_queue_that_kills_sooner_than_the_grace_ends_all_of_a_job(tmp_path, cell):
    script = "trap '' TERM; sleep 60 & echo $! >pid; echo ready; while :; do sleep 0.1; done"
    cell.configure("qconf", "-mattr", "queue", "notify", "00:00:01", "all.q")
    try:
        async with running(tmp_path, tuned={"kill_grace_s": 60.0, "kill_timeout_s": 30.0}) as xq:
            job = await xq.feed(bash(script), cwd=tmp_path)
            await until_ready(job)
            asked_s = time.monotonic()
            await xq.scheduler.kill_job_and_update_status(job)
            took_s = time.monotonic() - asked_s
    finally:
        cell.configure("qconf", "-mattr", "queue", "notify", "00:00:05", "all.q")
    assert job.outcome is JobOutcome.KILLED
    assert took_s < 30
    child = (tmp_path / "pid").read_text().strip()
    await until(lambda: not os.path.exists(f"/proc/{child}"), "nothing of it is left", 20)


class changed:  # noqa: N801  # reads as a word of its tests
    """Within its block the cell is configured otherwise."""

    def __init__(self, cell, **values):
        self._cell, self._values = cell, values

    def __enter__(self):
        self._before = self._cell.run("qconf", "-sconf").partition("\n")[2]
        text = self._before
        for name, value in self._values.items():
            text = re.sub(rf"^{name} .*", f"{name} {value}", text, flags=re.MULTILINE)
        assert text != self._before
        self._load(text)

    def __exit__(self, *exc):
        self._load(self._before)

    def _load(self, text):
        with self._cell.as_root():
            file = self._cell.folder / "objects" / "global"
            file.write_text(text)
            self._cell.run("qconf", "-Mconf", file)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ({"q": "nope.q"}, 'unknown queue "nope.q"'),
        ({"l": "nope=3"}, 'unknown resource "nope"'),
        ({"l": "h_rt=soon"}, "not a time value"),
        ({"pe": "nope 2"}, '"nope" does not exist'),
        ({"nope": 3}, 'invalid option argument "-nope"'),
        ({"resources": {"cpus": 2}}, "pe='<name>'"),
        ({"resources": {"disk_mib": 2}}, "disk_mib cannot be expressed"),
        ({"qsub": "xqute-no-such-qsub"}, "xqute-no-such-qsub cannot be run"),
    ],
)
async def test_what_cannot_be_submitted_fails_at_once_with_the_reason(tmp_path, cell, opts, words):
    jobs = await run(tmp_path, bash(ONCE), bash(ONCE), **opts)
    for job in jobs:
        assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUBMIT_FAILED, -2, 0)
        assert words in job.reason
        assert words in job.stderr_file.read_text()


async def test_without_its_environment_qsub_is_quoted(tmp_path, cell, monkeypatch):
    monkeypatch.delenv("SGE_ROOT")
    [job] = await run(tmp_path, bash(ONCE))
    assert (job.outcome, runs_of(job)) == (JobOutcome.SUBMIT_FAILED, 0)
    assert "SGE_ROOT" in job.reason


async def test_a_job_that_can_never_run_says_why_once_and_waits(tmp_path, cell):
    records = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())
    logger.addHandler(handler)
    try:
        async with running(tmp_path, pe="smp 900", tuned={"verify_after_s": 0.1}) as xq:
            jobs = [await xq.feed(bash(ONCE)) for _ in range(3)]
            await until(lambda: all(job.reason for job in jobs), "they say why", 40)
            reasons = {job.reason for job in jobs}
            xq.cancel()
    finally:
        logger.removeHandler(handler)
    [reason] = reasons
    assert "offers 0 slots" in reason.replace("only ", "")
    assert "no suitable queues" in reason
    assert [job.outcome for job in jobs] == [JobOutcome.CANCELLED] * 3
    assert sum("cannot start" in record for record in records) == 1


# --- trouble -------------------------------------------------------------------------------------


async def test_a_submission_whose_answer_was_lost_is_found_by_its_name(tmp_path, cell):
    workdir = tmp_path / "run"
    scheduler = SgeScheduler(workdir, h=True)
    jobs = [scheduler.create_job(index, bash(ONCE)) for index in range(4)]
    jids = {}
    for submission in scheduler.plan_submissions(jobs[:3]):
        jids |= await scheduler.submit(submission)
    jids[jobs[3]] = await scheduler.submit_job(jobs[3])
    later = SgeScheduler(workdir)
    later.run_id = scheduler.run_id
    keys = {later.submission_key(job): job for job in jobs}
    found = await later.find_submitted([*keys, "xq-00000000-0-0"])
    assert {keys[key]: jid for key, jid in found.items()} == jids
    states = await later.poll_jobs([with_jid(job, jids[job]) for job in jobs])
    assert {state.phase for state in states.values()} == {Phase.PENDING}
    await later.kill_jobs(jobs)
    await until(lambda: not cell.run("qstat"), "they are deleted")


async def test_a_job_that_has_our_id_now_is_not_touched(tmp_path, cell):
    """Ids begin again at 1 when Grid Engine has lost its state."""
    script = tmp_path / "script.sh"
    script.write_text("exit 0\n")
    stranger = cell.run("qsub", "-terse", "-h", "-S", "/bin/bash", script).strip()
    scheduler = SgeScheduler(tmp_path / "run")
    job = with_jid(scheduler.create_job(0, bash(ONCE)), stranger)
    await scheduler.kill_jobs([job])
    await scheduler.kill_jobs([job], force=True)
    assert not await scheduler.job_is_running(job)
    assert (await scheduler.client.read_queue(10))[stranger].state == "hqw"


def with_jid(job, jid):
    job.jid = jid
    return job


async def test_a_qmaster_that_hangs_during_a_submission_costs_time_and_nothing_else(tmp_path, cell):
    """What it was asked for while it hung, it does when it goes on."""
    async with running(tmp_path, client_timeout_s=1.0) as xq:
        first = await xq.feed(
            bash(f'{ONCE}echo ready; until [[ -e "$1" ]]; do sleep 0.1; done', "x")
        )
        await until_ready(first)
        cell.signal("qmaster", signal.SIGSTOP)
        try:
            others = [await xq.feed(bash(f"{ONCE}exit {rc}")) for rc in range(3)]
            await until(lambda: any(job.trial_count for job in others), "it was given up", 20)
            began_s = time.monotonic()
            await asyncio.sleep(0)
            assert time.monotonic() - began_s < 1, "the event loop waits for nothing"
        finally:
            cell.signal("qmaster", signal.SIGCONT)
        for job in others:
            await job.wait()
        xq.cancel()
    assert [job.rc for job in others] == [0, 1, 2]
    assert [runs_of(job) for job in (first, *others)] == [1] * 4


async def test_jobs_end_and_others_are_accepted_later_while_the_qmaster_is_down(tmp_path, cell):
    async with running(tmp_path) as xq:
        script = f'{ONCE}echo ready; until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.1; done; exit 4'
        ends_meanwhile, runs_on = [await xq.feed(bash(script)) for _ in range(2)]
        await until_ready(ends_meanwhile)
        cell.signal("qmaster", signal.SIGKILL)
        try:
            later = await xq.feed(bash(f"{ONCE}exit 6"))
            (tmp_path / "run" / "go").touch()
            assert await ends_meanwhile.wait() == JobOutcome.FAILED
            assert await runs_on.wait() == JobOutcome.FAILED
            assert later.outcome is None
        finally:
            cell.signal("execd", signal.SIGKILL)  # else it looks for the new one in 30 seconds
            cell.start()
    assert [job.rc for job in (ends_meanwhile, runs_on, later)] == [4, 4, 6]
    assert [runs_of(job) for job in (ends_meanwhile, runs_on, later)] == [1] * 3


async def being_deleted(scheduler):
    queued = await scheduler.client.read_queue(10)
    return {jid for jid, task in queued.items() if "d" in task.state}


async def test_jobs_of_a_dead_execd_tell_their_ends_and_a_kill_says_that_it_is_not_confirmed(
    tmp_path, cell
):
    """The queue shows such jobs as running, for ever."""
    async with running(tmp_path) as xq:
        ends = await xq.feed(
            bash('echo ready; until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.1; done; exit 4')
        )
        stays = await xq.feed(bash("echo ready; exec sleep 60"))
        await until_ready(ends)
        await until_ready(stays)
        cell.signal("execd", signal.SIGKILL)
        try:
            (tmp_path / "run" / "go").touch()
            assert await ends.wait() == JobOutcome.FAILED
            await xq.scheduler.kill_job_and_update_status(stays)
            assert stays.jid in await being_deleted(xq.scheduler), "that is all that it can do"
        finally:
            cell.start()
    assert ends.rc == 4
    assert stays.outcome in (JobOutcome.KILLED, JobOutcome.LOST)
    assert "not confirmed" in stays.reason
