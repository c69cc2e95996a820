"""What goes wrong between here, Batch, VMs and bucket, on a service that really runs jobs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from xqute import JobOutcome, JobStatus, Xqute, _clouds
from xqute.defaults import JobCause
from xqute.errors import SchedulerError, SubmitError, WorkdirError
from xqute.scheduler import Phase
from xqute.testing import bash, until
from xqute_gbatch import GbatchScheduler
from xqute_gbatch import client as client_module

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.needs("fusermount3", "unshare", "openssl", root=True),
]

APPENDS = 'echo run >>"$XQUTE_JOB_METADIR/runs"'


def read(job, name):
    return _clouds.get(f"{job.metadir}/{name}")


def n_runs(job):
    return (read(job, "runs") or b"").count(b"run\n")


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
async def test_a_refusal_for_now_is_charged_to_nobody(batch, running, code):
    batch.ask("fault", rpc="CreateJob", code=code, times=2)
    async with running(num_retries=0) as xq:
        job = await xq.feed(bash(APPENDS))
    assert job.outcome == JobOutcome.SUCCEEDED
    assert n_runs(job) == 1
    assert batch.ask("calls")["CreateJob"] == 3


@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN"])
async def test_a_creation_whose_answer_is_lost_runs_the_command_once(batch, running, code):
    batch.ask("fault", rpc="CreateJob", code=code, when="after")
    async with running() as xq:
        # It runs for longer than what is lost is waited for.
        job = await xq.feed(bash(f"{APPENDS}; sleep 2; exit 3"))
    assert n_runs(job) == 1
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)
    assert job.jid == xq.scheduler.job_id(job)


async def test_a_creation_of_which_batch_says_nothing_runs_the_command_once(batch, running):
    batch.ask("fault", rpc="CreateJob", code="DEADLINE_EXCEEDED", when="after")
    batch.ask("fault", rpc="GetJob", code="DEADLINE_EXCEEDED", times=2)
    async with running() as xq:
        job = await xq.feed(bash(f"{APPENDS}; sleep 2; exit 3"))
    assert n_runs(job) == 1
    assert (job.outcome, job.rc) == (JobOutcome.FAILED, 3)


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"])
async def test_a_refusal_does_not_hide_that_the_first_try_was_accepted(batch, make_scheduler, code):
    batch.ask("fault", rpc="CreateJob", code="UNAVAILABLE", when="after")
    batch.ask("fault", rpc="CreateJob", code=code)
    async with make_scheduler() as scheduler:
        job = scheduler.create_job(0, bash("true"))
        assert await scheduler.submit_job(job) == scheduler.job_id(job)
    assert batch.ask("calls")["CreateJob"] == 2


async def test_a_vm_that_comes_late_runs_nothing_of_a_later_attempt(batch, make_scheduler):
    batch.ask("vms", n=1)
    async with make_scheduler() as scheduler:
        blocks = scheduler.create_job(1, bash("sleep 60"))
        blocks.jid = await scheduler.submit_job(blocks)
        await until(lambda: batch.ask("states")[blocks.jid] == "RUNNING", "one has the VM", 30)
        job = scheduler.create_job(0, bash(APPENDS))
        early = await scheduler.submit_job(job)
        job.trial_count = 1
        late = await scheduler.submit_job(job)
        await scheduler.kill_jobs([blocks])
        ended = {early: "FAILED", late: "SUCCEEDED"}
        await until(lambda: ended.items() <= batch.ask("states").items(), "both are over", 30)
    assert n_runs(job) == 1


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
async def test_questions_that_fail_lose_no_job(batch, running, code):
    async with running(forks=3) as xq:
        for rpc in ("ListJobs", "GetJob"):
            batch.ask("fault", rpc=rpc, code=code, times=4)
        jobs = [await xq.feed(bash(f"{APPENDS}; sleep 1.5; exit {rc}")) for rc in (0, 4, 0)]
    assert [job.rc for job in jobs] == [0, 4, 0]
    assert [n_runs(job) for job in jobs] == [1, 1, 1]


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
async def test_a_cancellation_that_fails_is_repeated(batch, running, code):
    async with running() as xq:
        job = await xq.feed(bash("sleep 60"))
        await until(lambda: job.status is JobStatus.RUNNING, "it runs", 30)
        batch.ask("fault", rpc="CancelJob", code=code)
        await xq.scheduler.kill_job_and_update_status(job)
    assert job.outcome == JobOutcome.KILLED
    await until(lambda: batch.ask("states")[job.jid] == "CANCELLED", "Batch has cancelled it", 30)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"])
async def test_a_deletion_that_fails_changes_no_end(batch, running, code, caplog):
    batch.ask("fault", rpc="DeleteJob", code=code)
    async with running(opts={"delete_jobs": "ended"}) as xq:
        job = await xq.feed(bash("true"))
        await job.wait()
        await until(lambda: batch.ask("states")[job.jid] == "SUCCEEDED", "Batch says so, too", 30)
    assert job.outcome == JobOutcome.SUCCEEDED
    if code == "UNAVAILABLE":
        await until(lambda: job.jid not in batch.ask("states"), "it was repeated", 20)
    else:
        assert "was not deleted" in caplog.text


RCS = ("0", "5 7", "6 0")


async def run_on_mount(running, option, does):
    """Run jobs whose attempts end with `RCS`, on a mount with an option; give them ended."""
    async with running(forks=4, error_strategy="retry", num_retries=1) as xq:
        volume = xq.scheduler.config["taskGroups"][0]["taskSpec"]["volumes"][0]
        volume["mountOptions"].append(option)
        scripts = [f"{does}; rcs=({rcs}); exit ${{rcs[XQUTE_JOB_TRIAL]}}" for rcs in RCS]
        return [await xq.feed(bash(script)) for script in scripts]


async def test_files_that_a_mount_uploads_in_another_order_tell_the_truth(running):
    # The status, and the event that tells of it, are there before the exit code and the claim.
    jobs = await run_on_mount(running, "--write-back=0.5", APPENDS)
    assert [(job.rc, job.trial_count) for job in jobs] == [(0, 0), (7, 1), (0, 1)]
    assert [n_runs(job) for job in jobs] == [1, 2, 2]

    def told():
        return [(read(job, "job.rc"), read(job, "job.status")) for job in jobs]

    await until(lambda: told() == [(b"0", b"6"), (b"7", b"7"), (b"0", b"6")], "files say so", 20)


async def test_a_mount_that_remembers_names_for_a_minute_changes_nothing(running):
    jobs = await run_on_mount(running, "--stat-ttl=60", "echo x")
    assert [(job.rc, job.trial_count) for job in jobs] == [(0, 0), (7, 1), (0, 1)]
    assert [read(job, "job.stdout") for job in jobs] == [b"x\n"] * 3


async def test_a_job_that_waits_for_a_vm_is_cancelled(batch, running):
    batch.ask("vms", n=2)
    async with running(forks=30) as xq:
        jobs = [await xq.feed(bash(f"{APPENDS}; sleep 60")) for _ in range(5)]
        await until(lambda: all(job.jid for job in jobs), "all are submitted", 30)
        xq.cancel()
    assert {job.outcome for job in jobs} <= {JobOutcome.KILLED, JobOutcome.CANCELLED}
    assert JobOutcome.CANCELLED in {job.outcome for job in jobs}
    assert {n_runs(job) for job in jobs if job.outcome == JobOutcome.CANCELLED} == {0}


async def test_a_job_that_vanishes_is_lost(batch, running):
    async with running() as xq:
        job = await xq.feed(bash("sleep 60"))
        await until(lambda: job.status is JobStatus.RUNNING, "it runs", 30)
        batch.ask("vanish", job_id=job.jid)
    assert job.outcome == JobOutcome.LOST
    assert "Batch has no such job" in job.reason


async def test_a_job_that_is_preempted_twice_succeeds_at_no_charge(batch, running):
    script = f'{APPENDS}; [[ $XQUTE_JOB_TRIAL == 2 ]] || sleep 60; echo "$XQUTE_JOB_TRIAL"'
    async with running(num_retries=0) as xq:
        job = await xq.feed(bash(script))
        for trial in range(2):
            await until(
                lambda trial=trial: n_runs(job) == trial + 1 and job.trial_count == trial,
                f"attempt {trial} runs",
                40,
            )
            batch.ask("fail", job_id=job.jid, rc=50001)
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, 2)
    assert read(job, "job.stdout") == b"2\n"
    assert read(job, "job.retry/1/job.rc") == b"-1"


async def test_a_limit_of_batch_is_told(batch, running):
    async with running() as xq:
        job = await xq.feed(bash("sleep 60"))
        await until(lambda: job.status is JobStatus.RUNNING, "it runs", 30)
        batch.ask("fail", job_id=job.jid, rc=50005)
    assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.TIME_LIMIT)
    assert "maxRunDuration" in job.reason


async def test_a_job_that_somebody_else_cancels_is_no_success(batch, running):
    async with running() as xq:
        job = await xq.feed(bash("trap '' TERM; echo ready; sleep 60"))
        stdout = f"{job.metadir}/job.stdout"
        await until(lambda: _clouds.get(stdout) == b"ready\n", "it ignores a TERM", 30)
        await xq.scheduler._connect().cancel([job.jid])
    assert job.outcome == JobOutcome.FAILED
    assert "not by this run" in job.reason


async def test_a_wrapper_that_cannot_write_says_so(batch, running):
    # The mount is gone before the job ends: it cannot tell its end.
    async with running() as xq:
        job = await xq.feed(bash("umount -l /mnt/disks/xqute_workdir; exit 0"))
    assert (job.outcome, job.cause) == (JobOutcome.FAILED, JobCause.SETUP)
    assert job.rc == 122


async def test_why_a_job_waits_is_told(batch, make_scheduler):
    batch.ask("vms", n=1)
    async with make_scheduler() as scheduler:
        runs = scheduler.create_job(0, bash("sleep 60"))
        runs.jid = await scheduler.submit_job(runs)
        waits = scheduler.create_job(99, bash("true"))
        waits.jid = await scheduler.submit_job(waits)
        batch.ask("say", job_id=waits.jid, words="inadequate quotas [CPUS, count: 8]")
        state = (await scheduler.poll_jobs([waits]))[waits]
        await scheduler.kill_jobs([runs, waits])
    assert state.phase is Phase.PENDING
    assert "inadequate quotas" in state.reason
    assert "inadequate quotas" in waits.reason


async def test_a_thousand_jobs_are_asked_about_with_one_request(batch, make_scheduler):
    async with make_scheduler() as scheduler:
        jobs = [scheduler.create_job(n, bash("sleep 60")) for n in range(12)]
        for job in jobs:
            job.jid = await scheduler.submit_job(job)
        batch.ask("heal")
        states = await scheduler.poll_jobs(jobs)
        assert batch.ask("calls") == {"ListJobs": 1}
        await scheduler.kill_jobs(jobs)
    assert len(states) == 12


async def test_submissions_are_found_by_their_keys(make_scheduler):
    async with make_scheduler() as scheduler:
        job = scheduler.create_job(0, bash("true"))
        key = scheduler.submission_key(job)
        assert await scheduler.find_submitted([key]) == {}
        jid = await scheduler.submit_job(job)
        assert await scheduler.find_submitted([key, f"{key}9"]) == {key: jid}
        assert await scheduler.find_submitted([]) == {}


async def test_a_second_creation_under_our_key_is_a_success(batch, make_scheduler):
    async with make_scheduler() as scheduler:
        job = scheduler.create_job(0, bash("true"))
        jid = await scheduler.submit_job(job)
        batch.ask("forget_requests")
        assert await scheduler.submit_job(job) == jid


async def test_a_job_of_that_id_that_is_not_ours_is_an_error(batch, make_scheduler):
    async with make_scheduler() as scheduler:
        job = scheduler.create_job(0, bash("true"))
        await scheduler.submit_job(job)
        batch.ask("forget_requests")
        batch.ask("relabel", job_id=scheduler.job_id(job), key="xqute_key", value="another")
        with pytest.raises(SubmitError, match="not ours"):
            await scheduler.submit_job(job)


async def test_a_later_driver_finds_judges_and_kills_the_jobs_of_an_earlier_one(make_scheduler):
    async with make_scheduler() as earlier:
        runs, ends = (earlier.create_job(n, bash(c)) for n, c in enumerate(("sleep 60", "exit 4")))
        ids = [await earlier.submit_job(job) for job in (runs, ends)]
        workdir = earlier.workdir
    async with make_scheduler(workdir, jobname_prefix="renamed") as later:
        later.run_id = earlier.run_id  # what recovery has read from the journal
        jobs = [later.create_job(n, bash("x")) for n in range(2)]
        for job, jid in zip(jobs, ids, strict=True):
            job.jid = jid

        async def says_so():
            states = await later.poll_jobs(jobs)
            return (states[jobs[0]].phase, states[jobs[1]].rc) == (Phase.RUNNING, 4)

        await until(says_so, "the one runs, and the other has ended with 4", 30)
        await later.kill_jobs(jobs)

        async def is_gone():
            return not await later.job_is_running(jobs[0])

        await until(is_gone, "the one is gone", 30)


@pytest.mark.parametrize(
    ("delete_jobs", "left"),
    [("never", {"SUCCEEDED", "CANCELLED"}), ("killed", {"SUCCEEDED"}), ("ended", set())],
)
async def test_batch_jobs_are_deleted_as_was_said(batch, running, delete_jobs, left):
    async with running(opts={"delete_jobs": delete_jobs}, forks=2) as xq:
        ended = await xq.feed(bash("true"))
        killed = await xq.feed(bash("sleep 60"))
        await ended.wait()
        await until(lambda: killed.status is JobStatus.RUNNING, "it runs", 30)
        await xq.scheduler.kill_job_and_update_status(killed)
        ids = {ended.jid, killed.jid}

    def states():
        return {state for jid, state in batch.ask("states").items() if jid in ids}

    await until(lambda: states() == left, f"of both there is left: {left}", 20)


async def test_a_slow_bucket_does_not_hold_the_event_loop(running, monkeypatch):
    from xqute._clouds import gs

    reach = gs.GoogleBucket._bucket
    on_the_loop = []

    @contextlib.contextmanager
    def slowly(self, key):
        if threading.current_thread() is threading.main_thread():
            on_the_loop.append(key)
        time.sleep(0.5)
        with reach(self, key) as bucket:
            yield bucket

    monkeypatch.setattr(gs.GoogleBucket, "_bucket", slowly)
    async with running(error_strategy="retry", num_retries=1, forks=4) as xq:
        jobs = [await xq.feed(bash(f"exit {rc}")) for rc in (0, 5, 0)]
    assert [job.rc for job in jobs] == [0, 5, 0]
    assert not on_the_loop


# --- errors that are clear, and early ------------------------------------------------------------


async def test_permission_denied_or_the_api_disabled_is_told_before_anything_is_submitted(
    running,
):
    with pytest.raises(SchedulerError, match=r"(?s)denied.*API enabled"):
        async with running(opts={"project": "other"}) as xq:
            await xq.feed(["true"])


async def test_a_bucket_that_is_not_there_is_told(batch, make_scheduler):
    class Elsewhere(GbatchScheduler):
        def __new__(cls, workdir, **given):
            return make_scheduler("gs://no-such-bucket/run")

    with pytest.raises(WorkdirError, match="no-such-bucket"):
        async with Xqute(Elsewhere, workdir="x") as xq:
            await xq.feed(["true"])


async def test_missing_credentials_are_told(make_scheduler, monkeypatch, tmp_path):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    with pytest.raises(SchedulerError, match="gcloud auth application-default login"):
        await make_scheduler(client_options=None).start()
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no-such-key")
    with pytest.raises(SchedulerError, match="no-such-key"):
        await make_scheduler().start()


async def test_an_endpoint_that_does_not_answer_is_waited_for_no_longer_than_we_say(
    batch, make_scheduler, monkeypatch
):
    monkeypatch.setattr(client_module, "_DEADLINE_S", 1.5)
    monkeypatch.setattr(client_module, "_REQUEST_S", 0.5)
    options = {**batch.options, "api_endpoint": "localhost:1"}
    scheduler = make_scheduler(client_options=options)
    async with scheduler:
        job = scheduler.create_job(0, ["true"])
        began_s = time.monotonic()
        with pytest.raises(SubmitError) as caught:
            await scheduler.submit_job(job)
        assert time.monotonic() - began_s < 15
    assert caught.value.transient
    assert caught.value.maybe_submitted


async def test_a_job_config_can_be_submitted_by_hand(make_scheduler):
    import json

    scheduler = make_scheduler()
    job = scheduler.create_job(5, ["true"])
    path = await asyncio.to_thread(scheduler.job_config_file, job)
    assert str(path) == f"{job.metadir}/job.wrapped.gbatch.json"
    assert json.loads(read(job, path.name)) == scheduler.build_message(job)
