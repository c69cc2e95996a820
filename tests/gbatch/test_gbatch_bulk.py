"""Jobs that go together as the tasks of one Batch job: each has an end of its own."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from xqute import JobOutcome, JobStatus, _clouds
from xqute.errors import SubmitError
from xqute.scheduler import Phase
from xqute.testing import bash, until
from xqute_gbatch import GbatchScheduler
from xqute_gbatch.asking import for_each
from xqute_gbatch.client import check_message
from xqute_gbatch.groups import NativeId, parse_native_id, render_dispatch
from xqute_gbatch.parse import parse_task_state

APPENDS = 'echo run >>"$XQUTE_JOB_METADIR/runs"'
needs_service = pytest.mark.needs("fusermount3", "unshare", "openssl", root=True)


def make(**keywords):
    return GbatchScheduler("gs://bucket/run", project="p", location="l", bulk=True, **keywords)


# --- which go together ---------------------------------------------------------------------------


def test_jobs_that_ask_for_the_same_go_together():
    scheduler = make()
    jobs = [scheduler.create_job(n, ["true", str(n)]) for n in range(3)]
    [submission] = scheduler.plan_submissions(jobs)
    assert submission.key == f"xq-{scheduler.run_id}-0-0-g3"
    assert submission.jobs == tuple(jobs)


def test_jobs_that_ask_for_something_else_go_by_themselves():
    scheduler = make()
    jobs = [scheduler.create_job(n, ["true"]) for n in range(6)]
    jobs[1].resources = {"memory_mib": 4000}
    jobs[2].scheduler_opts = {"labels": {"team": "blue"}}
    jobs[3].trial_count = 1
    plans = scheduler.plan_submissions(jobs)
    assert [[job.index for job in plan.jobs] for plan in plans] == [[0, 4, 5], [1], [2], [3]]
    assert plans[1].key == scheduler.submission_key(jobs[1])


def test_without_bulk_each_goes_by_itself():
    scheduler = GbatchScheduler("gs://bucket/run", project="p", location="l")
    jobs = [scheduler.create_job(n, ["true"]) for n in range(3)]
    assert [plan.jobs for plan in scheduler.plan_submissions(jobs)] == [(job,) for job in jobs]


def test_a_job_that_batch_would_not_take_does_not_spoil_the_others():
    scheduler = make()
    jobs = [scheduler.create_job(n, ["true"]) for n in range(3)]
    jobs[1].resources = {"queue": "long"}
    plans = scheduler.plan_submissions(jobs)
    assert [[job.index for job in plan.jobs] for plan in plans] == [[0, 2], [1]]


def test_a_message_of_many_tasks_is_one_that_batch_takes():
    scheduler = make()
    job = scheduler.create_job(0, ["true"])
    message = check_message(scheduler._build(job, "xq-0123abcd-0-0-g3", "/x.sh", 3))
    assert message.task_groups[0].task_count == 3
    assert message.labels["xqute_key"] == "xq-0123abcd-0-0-g3"


def test_native_ids_name_a_task():
    assert parse_native_id("gbatch-0123abcd-5-0") == NativeId("gbatch-0123abcd-5-0")
    assert parse_native_id("gbatch-0123abcd-5-0", 0) == NativeId("gbatch-0123abcd-5-0")
    assert parse_native_id("x-g3/1") == NativeId("x-g3")
    task = NativeId("gbatch-0123abcd-5-0-g12", 7, 12)
    assert parse_native_id(str(task)) == task
    assert parse_native_id("gbatch-0123abcd-5-0-g12", 7) == task


# --- what a task runs ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrapper", "task", "rc"),
    [
        ("echo ran >ran; : >job.end.tag; exit 7", 1, 0),
        ("echo ran >ran; exit 122", 1, 122),
        ("exit 121", 1, 0),
        ("echo ran >ran; kill -KILL $$", 1, 137),
        ("echo ran >ran", 0, 0),
    ],
    ids=["a failure that was told", "untold", "revoked", "killed", "no job"],
)
def test_a_task_fails_only_if_its_job_could_not_tell_its_end(tmp_path, wrapper, task, rc):
    folder = tmp_path / "4"
    folder.mkdir()
    (folder / "wrapper").write_text(f'cd "${{0%/*}}"; {wrapper}')
    script = render_dispatch(str(tmp_path), ["-", "4"], "tag", "wrapper")
    environment = {"BATCH_TASK_INDEX": str(task), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-p", "-c", script], env=environment, check=False)
    assert done.returncode == rc
    assert (folder / "ran").exists() == ("ran" in wrapper and task == 1)


def test_a_task_whose_job_was_revoked_does_nothing(tmp_path):
    folder = tmp_path / "4"
    folder.mkdir()
    (folder / "wrapper").write_text('echo ran >"${0%/*}/ran"')
    (folder / "job.start.tag").write_text("revoked driver\n")
    script = render_dispatch(str(tmp_path), ["4"], "tag", "wrapper")
    done = subprocess.run(["bash", "-p", "-c", script], env={"BATCH_TASK_INDEX": "0"}, check=False)
    assert done.returncode == 0
    assert not (folder / "ran").exists()


# --- what Batch says of tasks --------------------------------------------------------------------


def test_states_of_tasks_are_those_of_their_jobs():
    def phase(state, job_state="RUNNING"):
        return parse_task_state(state, [], job_state, []).phase

    assert phase("PENDING") == phase("ASSIGNED") == Phase.PENDING
    assert phase("RUNNING") == Phase.RUNNING
    assert phase("SUCCEEDED") == Phase.GONE, "its job has told how it ended"
    assert phase("PENDING", "CANCELLED") == Phase.GONE


def test_a_task_of_which_a_vm_was_preempted_is_no_failure_of_the_others():
    words = "Task state is updated from RUNNING to FAILED on zones/z with exit code 50001."
    failed = parse_task_state("FAILED", [words], "RUNNING", [])
    assert (failed.phase, failed.cause) == (Phase.ENDED, "PREEMPTED")
    idle = parse_task_state("UNEXECUTED", [], "FAILED", [f"Job failed: {words}"])
    assert (idle.phase, idle.rc, idle.cause) == (Phase.ENDED, None, "NODE_FAILED")


def test_a_group_that_got_no_vm_says_why():
    state = parse_task_state("PENDING", [], "FAILED", ["CODE_GCE_QUOTA_EXCEEDED"])
    assert (state.phase, state.cause) == (Phase.ENDED, "QUOTA")
    assert parse_task_state("PENDING", [], "FAILED", ["no image"]).cause == "SETUP"


@pytest.mark.asyncio
async def test_of_many_questions_none_is_left_when_one_went_wrong():
    asked, given_up = [], []

    async def ask(key):
        asked.append(key)
        if key == 3:
            raise OSError("no")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            given_up.append(key)
            raise

    with pytest.raises(OSError, match="no"):
        await for_each(range(100), ask)
    await asyncio.sleep(0)
    assert len(asked) < 100
    assert given_up == [key for key in asked if key != 3]


# --- on a service that runs jobs -----------------------------------------------------------------


def n_runs(job):
    return (_clouds.get(f"{job.metadir}/runs") or b"").count(b"run\n")


@pytest.fixture
def bulk(running):
    """Run with groups; jobs that are fed together go together."""
    return lambda **keywords: running(opts={"bulk": True, **keywords.pop("opts", {})}, **keywords)


@needs_service
@pytest.mark.asyncio
async def test_many_go_with_one_request_and_each_has_its_own_end(batch, bulk):
    async with bulk(forks=8) as xq:
        jobs = [await xq.feed(bash(f"{APPENDS}; echo {n}; exit {n % 3}")) for n in range(6)]
    assert batch.ask("calls")["CreateJob"] == 1
    assert [job.rc for job in jobs] == [n % 3 for n in range(6)]
    assert [_clouds.get(f"{job.metadir}/job.stdout") for job in jobs] == [
        b"%d\n" % n for n in range(6)
    ]
    assert [n_runs(job) for job in jobs] == [1] * 6
    job_id = f"gbatch-{xq.scheduler.run_id}-0-0-g6"
    assert [job.jid for job in jobs] == [f"{job_id}/{n}" for n in range(6)]
    await until(lambda: batch.ask("states")[job_id] == "SUCCEEDED", "all tasks exit with 0", 20)


@needs_service
@pytest.mark.asyncio
async def test_each_is_tried_again_by_itself(batch, bulk):
    script = f"{APPENDS}; rcs=($0); exit ${{rcs[XQUTE_JOB_TRIAL]}}"
    async with bulk(forks=8, error_strategy="retry", num_retries=1) as xq:
        jobs = [
            await xq.feed(["bash", "-c", script, rcs]) for rcs in ("0", "3 0", "0", "4 5", "6 0")
        ]
    assert [(job.rc, job.trial_count) for job in jobs] == [(0, 0), (0, 1), (0, 0), (5, 1), (0, 1)]
    assert [n_runs(job) for job in jobs] == [1, 2, 1, 2, 2]


@needs_service
@pytest.mark.asyncio
async def test_a_preempted_task_runs_again_and_so_does_what_its_group_left_undone(batch, bulk):
    batch.ask("vms", n=3)
    script = f"{APPENDS}; [[ $XQUTE_JOB_INDEX != 0 || $XQUTE_JOB_TRIAL != 0 ]] || sleep 60; sleep 1"
    async with bulk(forks=8, num_retries=0) as xq:
        jobs = [await xq.feed(bash(script)) for _ in range(5)]
        await until(lambda: n_runs(jobs[0]) == 1, "the first one runs", 30)
        job_id = jobs[0].jid.partition("/")[0]
        batch.ask("fail", job_id=job_id, place=0, rc=50001)
    assert {job.outcome for job in jobs} == {JobOutcome.SUCCEEDED}
    assert [n_runs(job) for job in jobs] == [2, 1, 1, 1, 1]
    assert jobs[0].trial_count == 1


@needs_service
@pytest.mark.asyncio
async def test_all_of_a_group_are_asked_about_with_one_request(batch, make_scheduler):
    async with make_scheduler(bulk=True) as scheduler:
        jobs = [scheduler.create_job(n, bash("sleep 60")) for n in range(4)]
        [submission] = scheduler.plan_submissions(jobs)
        ids = await scheduler.submit(submission)
        for job in jobs:
            job.jid = ids[job]

        async def all_run():
            states = await scheduler.poll_jobs(jobs)
            return {state.phase for state in states.values()} == {Phase.RUNNING}

        await until(all_run, "all run", 40)
        batch.ask("heal")
        assert len(await scheduler.poll_jobs(jobs)) == 4
        assert batch.ask("calls") == {"GetJob": 1, "ListTasks": 1}
        await scheduler.kill_jobs(jobs)


@needs_service
@pytest.mark.asyncio
async def test_a_group_is_found_by_its_key_and_its_tasks_by_their_places(make_scheduler):
    async with make_scheduler(bulk=True) as scheduler:
        jobs = [scheduler.create_job(n, bash("true")) for n in range(2)]
        [submission] = scheduler.plan_submissions(jobs)
        ids = await scheduler.submit(submission)
        found = (await scheduler.find_submitted([submission.key]))[submission.key]
    assert [scheduler.id_in_submission(found, n) for n in range(2)] == list(ids.values())


@needs_service
@pytest.mark.asyncio
@pytest.mark.parametrize("code", ["UNAVAILABLE", "DEADLINE_EXCEEDED"])
async def test_a_group_whose_answer_is_lost_runs_once(batch, bulk, code):
    batch.ask("fault", rpc="CreateJob", code=code, when="after")
    async with bulk(forks=4) as xq:
        jobs = [await xq.feed(bash(f"{APPENDS}; exit {n}")) for n in range(3)]
    assert [(job.rc, n_runs(job)) for job in jobs] == [(0, 1), (1, 1), (2, 1)]


@needs_service
@pytest.mark.asyncio
async def test_who_stops_the_run_ends_the_group(batch, bulk):
    async with bulk(forks=4) as xq:
        jobs = [await xq.feed(bash("sleep 60")) for _ in range(3)]
        await until(lambda: all(job.status is JobStatus.RUNNING for job in jobs), "all run", 40)
        xq.cancel()
    assert {job.outcome for job in jobs} == {JobOutcome.KILLED}
    job_id = jobs[0].jid.partition("/")[0]
    await until(lambda: batch.ask("states")[job_id] == "CANCELLED", "Batch has cancelled it", 30)


@needs_service
@pytest.mark.asyncio
async def test_a_group_is_ended_though_one_of_its_jobs_was_never_submitted(
    batch, make_scheduler, monkeypatch
):
    batch.ask("vms", n=1)
    async with make_scheduler(bulk=True) as scheduler:
        blocks = scheduler.create_job(9, bash("sleep 60"))
        blocks.jid = await scheduler.submit_job(blocks)
        await until(lambda: batch.ask("states")[blocks.jid] == "RUNNING", "it has the VM", 30)
        jobs = [scheduler.create_job(n, bash("sleep 60")) for n in range(3)]
        [submission] = scheduler.plan_submissions(jobs)
        render = scheduler.wrap_job_script

        def refuse_one(job):
            if job is jobs[1]:
                raise ValueError("no script for this one")
            return render(job)

        monkeypatch.setattr(scheduler, "wrap_job_script", refuse_one)
        answers = await scheduler.submit(submission)
        assert isinstance(answers[jobs[1]], ValueError)
        for job in (jobs[0], jobs[2]):
            job.jid = answers[job]
        await scheduler.kill_jobs([jobs[0], jobs[2]])
        job_id = jobs[0].jid.partition("/")[0]
        await until(lambda: batch.ask("states")[job_id] == "CANCELLED", "it is cancelled", 30)
        await scheduler.kill_jobs([blocks])


@needs_service
@pytest.mark.asyncio
async def test_tasks_of_a_group_that_was_created_unanswered_are_found(batch, make_scheduler):
    """Those that have begun are watched: what becomes of them is only heard under their ids."""
    batch.ask("fault", rpc="CreateJob", code="DEADLINE_EXCEEDED", when="after")
    batch.ask("fault", rpc="GetJob", code="DEADLINE_EXCEEDED")
    async with make_scheduler(bulk=True) as scheduler:
        jobs = [scheduler.create_job(n, bash("true")) for n in range(2)]
        [submission] = scheduler.plan_submissions(jobs)
        with pytest.raises(SubmitError) as caught:
            await scheduler.submit(submission)
        assert caught.value.maybe_submitted
        found = await scheduler.find_submitted(map(scheduler.submission_key, jobs))
        for job in jobs:
            job.jid = found[scheduler.submission_key(job)]
        assert [job.jid for job in jobs] == [
            f"gbatch-{scheduler.run_id}-0-0-g2/{n}" for n in range(2)
        ]
        assert set(await scheduler.poll_jobs(jobs)) == set(jobs)


@needs_service
@pytest.mark.asyncio
async def test_a_group_whose_creation_was_not_waited_for_is_ended(
    batch, make_scheduler, monkeypatch
):
    """A run that is stopped gives up waiting; what has begun by then is killed."""
    async with make_scheduler(bulk=True) as scheduler:
        client = scheduler._connect()
        create = client.create

        async def create_and_say_nothing(*what):
            await create(*what)
            await asyncio.Event().wait()

        monkeypatch.setattr(client, "create", create_and_say_nothing)
        jobs = [scheduler.create_job(n, bash("sleep 60")) for n in range(2)]
        [submission] = scheduler.plan_submissions(jobs)
        submitting = asyncio.create_task(scheduler.submit(submission))
        job_id = f"gbatch-{scheduler.run_id}-0-0-g2"
        await until(lambda: batch.ask("states").get(job_id) == "RUNNING", "it runs", 30)
        submitting.cancel()
        await asyncio.wait([submitting])
        await scheduler.kill_jobs(jobs)
        await until(lambda: batch.ask("states")[job_id] == "CANCELLED", "it is cancelled", 30)


@needs_service
@pytest.mark.asyncio
async def test_a_task_cannot_be_killed_alone_and_that_is_told(batch, bulk, caplog):
    async with bulk(forks=4) as xq:
        xq.scheduler.kill_grace_s, xq.scheduler.kill_timeout_s = 0.3, 1.5
        jobs = [await xq.feed(bash(f"{APPENDS}; {WAITS}")) for _ in range(2)]
        await until(lambda: all(map(n_runs, jobs)), "both run", 40)
        await xq.scheduler.kill_job_and_update_status(jobs[0])
        await jobs[0].wait()
        _clouds.put(f"{xq.scheduler.workdir}/go", b"")
    assert jobs[0].outcome == JobOutcome.LOST
    assert "not confirmed" in jobs[0].reason
    assert "Batch cannot end a task alone" in caplog.text
    assert jobs[1].outcome == JobOutcome.SUCCEEDED


WAITS = "until [[ -e $XQUTE_METADIR/go ]]; do sleep 0.1; done"


@needs_service
@pytest.mark.asyncio
async def test_the_next_driver_takes_up_the_tasks_of_a_group(batch, running, make_workdir):
    opts, workdir = {"bulk": True}, make_workdir()
    async with running(opts=opts, forks=4, workdir=workdir) as first:
        jobs = [await first.feed(bash(f"{APPENDS}; {WAITS}; exit {n}")) for n in range(3)]
        await until(lambda: all(map(n_runs, jobs)), "all run", 40)
        await first.detach()
    batch.ask("heal")
    async with running(opts=opts, forks=4, workdir=workdir) as later:
        again = [await later.feed(job.cmd) for job in jobs]
        await asyncio.sleep(0)
        _clouds.put(f"{workdir}/go", b"")
    assert [(job.rc, job.adopted, n_runs(job)) for job in again] == [
        *((0, True, 1), (1, True, 1), (2, True, 1))
    ]
    assert "CreateJob" not in batch.ask("calls")
