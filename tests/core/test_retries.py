"""Error strategies: what a failed attempt leads to, and what is kept of it."""

from __future__ import annotations

import pytest

from xqute import Job, JobErrorStrategy, JobOutcome, JobStatus, SubmitError, Xqute, _protocol
from xqute.scheduler import BackendState, Phase
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")

FAILS_ONCE = 'echo "attempt $XQUTE_JOB_TRIAL"; echo err >&2; exit $((XQUTE_JOB_TRIAL ? 0 : 4))'


async def test_by_default_a_failure_is_ignored(tmp_path):
    xq = Xqute(workdir=tmp_path)
    failing, other = await xq.put("false"), await xq.put("true")
    await xq.run_until_complete()
    assert (failing.outcome, failing.status, failing.rc) == (JobOutcome.FAILED, JobStatus.FAILED, 1)
    assert failing.trial_count == 0
    assert not failing.retry_dir.exists()
    assert other.outcome is JobOutcome.SUCCEEDED


@pytest.mark.parametrize("strategy", ["retry", JobErrorStrategy.RETRY])
async def test_under_retry_a_failure_is_tried_again(tmp_path, strategy):
    xq = Xqute(workdir=tmp_path, error_strategy=strategy)
    job = await xq.put(["bash", "-c", FAILS_ONCE])
    await xq.run_until_complete()
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, 1)
    assert job.stdout_file.read_text() == "attempt 1\n"


async def test_num_retries_bounds_the_attempts(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=2)
    job = await xq.put(["bash", "-c", "exit $((10 + XQUTE_JOB_TRIAL))"])
    await xq.run_until_complete()
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.FAILED, 12, 2)


async def test_num_retries_0_means_one_attempt(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=0)
    job = await xq.put("false")
    await xq.run_until_complete()
    assert (job.outcome, job.trial_count) == (JobOutcome.FAILED, 0)


async def test_num_retries_is_per_job(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1)
    jobs = [
        await xq.put("false"),
        await xq.feed("false", num_retries=3),
        await xq.feed("false", num_retries=0),
        await xq.put(Job(3, "false", tmp_path)),
        await xq.put(Job(4, "false", tmp_path, num_retries=2)),
        await xq.put(Job(5, "false", tmp_path, error_retry=False)),
    ]
    await xq.run_until_complete()
    assert [job.trial_count for job in jobs] == [1, 3, 0, 1, 2, 0]


async def test_error_retry_of_a_job_counts_under_ignore_too(tmp_path):
    xq = Xqute(workdir=tmp_path)
    job = await xq.put(Job(0, "false", tmp_path, error_retry=True, num_retries=1))
    await xq.run_until_complete()
    assert job.trial_count == 1


async def test_the_files_of_an_attempt_are_kept(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry")
    job = await xq.put(["bash", "-c", FAILS_ONCE])
    await xq.run_until_complete()
    kept = job.retry_dir / "0"
    assert kept == job.metadir / "job.retry" / "0"
    assert (kept / "job.stdout").read_text() == "attempt 0\n"
    assert (kept / "job.stderr").read_text() == "err\n"
    assert (kept / "job.rc").read_text() == "4"
    assert (kept / "job.status").read_text() == str(int(JobStatus.FAILED))
    assert (kept / "job.jid").read_text().strip().isdigit()
    assert (kept / "job.jid").read_text() != job.jid_file.read_text()
    assert [path.name for path in job.retry_dir.iterdir()] == ["0"]


async def test_the_wrapper_of_an_attempt_is_kept_too(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry")
    job = await xq.put(["bash", "-c", FAILS_ONCE])
    await xq.run_until_complete()
    assert (job.retry_dir / "0" / "job.wrapped.local").exists()


async def test_every_attempt_but_the_last_is_in_the_retry_folder(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=3)
    job = await xq.put(["bash", "-c", "echo $XQUTE_JOB_TRIAL; exit 1"])
    await xq.run_until_complete()
    kept = [(job.retry_dir / str(n) / "job.stdout").read_text() for n in range(3)]
    assert kept == ["0\n", "1\n", "2\n"]
    assert job.stdout_file.read_text() == "3\n"
    assert not (job.retry_dir / "3").exists()


async def test_the_hooks_of_a_retry_come_in_order(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1, plugins=[recorder])
    await xq.put("false")
    await xq.run_until_complete()
    attempt = ["queued", "submitting", "submitted", "started", "failed"]
    assert recorder.hooks() == ["init", *attempt, *attempt]


async def test_during_on_job_failed_the_status_tells_whether_a_retry_follows(tmp_path, recorder):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=2, plugins=[recorder])
    await xq.put("false")
    await xq.run_until_complete()
    failed = [(status, trial) for hook, _, status, trial in recorder.calls if hook == "failed"]
    assert failed == [
        (JobStatus.RETRYING, 0),
        (JobStatus.RETRYING, 1),
        (JobStatus.FAILED, 2),
    ]


async def test_during_on_job_failed_the_files_are_those_of_the_failed_attempt(tmp_path):
    from xqute import plugin

    seen = []

    class Reader:
        name = "reader"

        @plugin.impl
        async def on_job_failed(self, scheduler, job):
            seen.append((job.rc, job.stdout_file.read_text(), job.outcome))

    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1, plugins=[Reader()])
    await xq.put(["bash", "-c", "echo $XQUTE_JOB_TRIAL; exit $((7 + XQUTE_JOB_TRIAL))"])
    await xq.run_until_complete()
    assert seen == [(7, "0\n", JobOutcome.FAILED), (8, "1\n", JobOutcome.FAILED)]


async def test_a_timeout_is_a_failure_of_the_job_and_tried_again(tmp_path):
    xq = Xqute(workdir=tmp_path, error_strategy="retry", num_retries=1)
    job = await xq.feed(["bash", "-c", "((XQUTE_JOB_TRIAL)) || sleep 60"], timeout=0.2)
    await xq.run_until_complete()
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 1)
    assert (job.retry_dir / "0" / "job.rc").read_text() == "143"


async def test_transient_refusals_are_not_charged(tmp_path):
    class Busy(LocalScheduler):
        name = "busy"
        refusals = 2

        async def submit_job(self, job):
            if Busy.refusals:
                Busy.refusals -= 1
                raise SubmitError("try later", transient=True)
            return await super().submit_job(job)

    xq = Xqute(Busy, workdir=tmp_path, num_retries=0)
    jobs = [await xq.put("true") for _ in range(3)]
    await xq.run_until_complete()
    assert [(job.outcome, job.trial_count) for job in jobs] == [(JobOutcome.SUCCEEDED, 0)] * 3


async def test_a_submission_that_fails_for_good_is_told(tmp_path, recorder):
    class Closed(LocalScheduler):
        name = "closed"

        async def submit_job(self, job):
            if job.index == 1:
                raise ValueError("no such queue")
            return await super().submit_job(job)

    xq = Xqute(Closed, workdir=tmp_path, plugins=[recorder])
    jobs = [await xq.put("true") for _ in range(3)]
    await xq.run_until_complete()
    assert [job.outcome for job in jobs] == [
        JobOutcome.SUCCEEDED,
        JobOutcome.SUBMIT_FAILED,
        JobOutcome.SUCCEEDED,
    ]
    assert (jobs[1].status, jobs[1].rc) == (JobStatus.FAILED, -2)
    assert "no such queue" in jobs[1].stderr_file.read_text()
    assert "no such queue" in jobs[1].reason
    assert jobs[1].rc_file.read_text() == "-2"
    assert recorder.hooks(1) == ["init", "queued", "submitting", "failed"]


async def test_a_submission_that_failed_is_tried_again_under_retry(tmp_path):
    class Moody(LocalScheduler):
        name = "moody"

        async def submit_job(self, job):
            if job.trial_count == 0:
                raise OSError("the controller is away")
            return await super().submit_job(job)

    xq = Xqute(Moody, workdir=tmp_path, error_strategy="retry", num_retries=1)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 1)
    assert "the controller is away" in (job.retry_dir / "0" / "job.stderr").read_text()


@pytest.mark.parametrize("strategy", ["retry", "halt"])
async def test_the_strategy_may_be_changed_on_the_scheduler(tmp_path, strategy):
    xq = Xqute(workdir=tmp_path)
    xq.scheduler.error_strategy = strategy
    xq.scheduler.num_retries = 1
    failing, other = await xq.put("false"), await xq.put("true")
    await xq.run_until_complete()
    if strategy == "retry":
        assert (failing.trial_count, other.outcome) == (1, JobOutcome.SUCCEEDED)
    else:
        assert (xq.halted_by, other.outcome) == (failing, JobOutcome.CANCELLED)


@pytest.mark.parametrize("cause", ["PREEMPTED", "NODE_FAILED"])
async def test_what_the_backend_did_to_a_job_is_made_good_whatever_the_strategy(tmp_path, cause):
    class Preempting(LocalScheduler):
        name = "preempting"

        async def submit_job(self, job):
            return await super().submit_job(job) if job.trial_count else 999999999

        async def poll_jobs(self, jobs):
            ended = BackendState(Phase.ENDED, None, cause, "the node is gone")
            return {job: ended for job in jobs if job.trial_count == 0}

    options = {"recheck_interval": 0.05}
    xq = Xqute(Preempting, workdir=tmp_path, num_retries=0, scheduler_opts=options)
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.outcome, job.trial_count) == (JobOutcome.SUCCEEDED, 1)


@pytest.mark.parametrize(("told", "n_more"), [("", 0), ("TERMINATED", 1)])
async def test_who_had_succeeded_before_its_node_was_gone_does_not_run_again(
    tmp_path, told, n_more
):
    """What ended well because it was told to go, has not done its work."""

    class Late(LocalScheduler):
        name = "late"
        explains_failures = True

        async def submit_job(self, job):
            if job.trial_count:
                return await super().submit_job(job)
            _protocol.write_end(job.local_dir, self.claim_tag(job), 0, 6, told)
            return 999999999

        async def poll_jobs(self, jobs):
            ended = BackendState(Phase.ENDED, None, "PREEMPTED", "the node is gone")
            return {job: ended for job in jobs if job.trial_count == 0}

    xq = Xqute(Late, workdir=tmp_path, scheduler_opts={"recheck_interval": 0.05})
    job = await xq.put("true")
    await xq.run_until_complete()
    assert (job.outcome, job.rc, job.trial_count) == (JobOutcome.SUCCEEDED, 0, n_more)


@pytest.mark.parametrize(
    ("rc", "cause"),
    [(128, "EXIT_CODE"), (192, "SIGNAL"), (193, "EXIT_CODE"), (255, "EXIT_CODE")],
)
async def test_an_exit_code_above_all_signals_is_a_programs_own(tmp_path, rc, cause):
    async with Xqute(workdir=tmp_path) as xq:
        job = await xq.put(["bash", "-c", f"exit {rc}"])
    assert (job.rc, job.cause) == (rc, cause)
