"""Portable resources: what makes sense, who goes before whom, and escalation."""

from __future__ import annotations

import pytest

from xqute import ConfigError, Resources, SubmitError, Xqute
from xqute.resources import resolve_resources
from xqute.schedulers.local_scheduler import LocalScheduler
from xqute.testing import Behaviour, MemoryScheduler, bash


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"cpus": 0}, "cpus"),
        ({"cpus": 1.5}, "cpus"),
        ({"cpus": True}, "cpus"),
        ({"cpus": "4"}, "cpus"),
        ({"memory_mib": 0}, "memory_mib"),
        ({"memory_mib": "4G"}, "memory_mib"),
        ({"gpus": -1}, "gpus"),
        ({"gpu_type": "a100"}, "gpu_type"),
        ({"walltime_s": 0}, "walltime_s"),
        ({"walltime_s": "1:00"}, "walltime_s"),
        ({"walltime_s": float("inf")}, "walltime_s"),
        ({"nodes": 0}, "nodes"),
        ({"queue": ""}, "queue"),
        ({"queue": "a\nb"}, "queue"),
        ({"account": 7}, "account"),
        ({"memory": 100}, r"'memory' \(did you mean 'memory_mib'"),
        ("4G", "4G"),
        (7, "7"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(tmp_path, wrong, named):
    with pytest.raises(ConfigError, match=named):
        LocalScheduler(tmp_path, resources=wrong)


async def test_so_is_what_a_job_asks_for(tmp_path):
    async with Xqute(MemoryScheduler, workdir=tmp_path) as xq:
        with pytest.raises(ConfigError, match="cpus"):
            await xq.feed("a", resources={"cpus": -1})
        await xq.feed("b", resources={"cpus": 2})
    assert [job.index for job in xq.jobs] == [0]


def test_a_dict_changes_some_points_and_resources_stand_for_themselves():
    site = {"cpus": 4, "queue": "long"}
    assert resolve_resources(None, None, 0, None) == Resources()
    assert resolve_resources(site, None, 0, None) == Resources(cpus=4, queue="long")
    both = resolve_resources(site, {"cpus": 8}, 0, None)
    assert both == Resources(cpus=8, queue="long")
    assert resolve_resources(site, Resources(cpus=8), 0, None) == Resources(cpus=8)


async def test_a_callable_knows_the_attempt_and_why_the_last_one_ended(tmp_path):
    asked = []

    def escalate(attempt, last_cause):
        return {"memory_mib": 1000 * 2**attempt if last_cause == "OUT_OF_MEMORY" else 1000}

    def behave(job):
        asked.append(scheduler.resources_of(job).memory_mib)
        return Behaviour(rc=137, cause="OUT_OF_MEMORY") if job.trial_count < 2 else Behaviour()

    opts = {"resources": escalate, "behave": behave}
    async with Xqute(
        MemoryScheduler, workdir=tmp_path, scheduler_opts=opts, error_strategy="retry"
    ) as xq:
        scheduler = xq.scheduler
        job = await xq.feed("a")
    assert asked == [1000, 2000, 4000]
    assert job.outcome == "succeeded"


async def test_a_submission_that_was_not_answered_is_no_attempt_for_it(tmp_path):
    """A controller that hangs is no reason to ask for more, again and again."""

    class Hangs(LocalScheduler):
        n_calls = 0

        async def submit(self, submission):
            self.n_calls += 1
            if self.n_calls in (2, 3, 4):
                raise SubmitError("timed out", transient=True, maybe_submitted=True)
            return await super().submit(submission)

    asked = []
    opts = {"resources": lambda attempt, cause: asked.append((attempt, cause))}
    async with Xqute(
        Hangs, workdir=tmp_path, scheduler_opts=opts, error_strategy="retry", num_retries=1
    ) as xq:
        job = await xq.feed(bash("exit $((XQUTE_JOB_TRIAL == 0))"))
    assert (job.rc, job.trial_count) == (0, 4)
    assert set(asked) == {(0, None), (1, "EXIT_CODE")}


def test_what_a_callable_gives_is_judged_too(tmp_path):
    scheduler = LocalScheduler(tmp_path, resources=lambda attempt, cause: {"cpus": attempt - 1})
    with pytest.raises(ConfigError, match="cpus"):
        scheduler.resources_of(scheduler.create_job(0, "a"))
