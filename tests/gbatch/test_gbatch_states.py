"""What Batch says, as states of jobs."""

from __future__ import annotations

import pytest
from google.cloud.batch_v1 import JobStatus

from xqute.defaults import JobCause
from xqute.errors import SchedulerError
from xqute.scheduler import Phase
from xqute_gbatch.parse import ACTIVE_STATES, build_filter, parse_state, run_of_key


def failed_with(code):
    words = (
        "Job state is set from RUNNING to FAILED for job projects/1/locations/x/jobs/y. Job failed "
        "due to task failure. Specifically, task with index 0 failed due to the following task "
        'event: "Task state is updated from RUNNING to FAILED on zones/x/instances/1 '
        f'with exit code {code}."'
    )
    return [words]


def test_every_state_of_the_sdk_is_known():
    for state in JobStatus.State:
        parse_state(state.name, [])
    assert {"QUEUED", "SCHEDULED", "RUNNING"} <= set(ACTIVE_STATES)


def test_a_state_that_is_unknown_is_named():
    with pytest.raises(SchedulerError, match="PONDERING"):
        parse_state("PONDERING", [])


def test_a_queued_job_tells_why():
    state = parse_state("QUEUED", ["", "Quota checking process decided to delay scheduling"])
    assert (state.phase, state.reason) == (
        Phase.PENDING,
        "Quota checking process decided to delay scheduling",
    )


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        (50001, JobCause.PREEMPTED),
        (50002, JobCause.NODE_FAILED),
        (50003, JobCause.NODE_FAILED),
        (50004, JobCause.NODE_FAILED),
        (50005, JobCause.TIME_LIMIT),
        (50006, JobCause.NODE_FAILED),
    ],
)
def test_exit_codes_of_batch_are_causes_and_no_exit_codes(code, cause):
    state = parse_state("FAILED", failed_with(code))
    assert (state.phase, state.rc, state.cause) == (Phase.ENDED, None, cause)
    assert str(code) in state.reason


def test_exit_codes_of_the_script_are_told():
    state = parse_state("FAILED", failed_with(137))
    assert (state.phase, state.rc, state.cause) == (Phase.ENDED, 137, None)
    assert parse_state("SUCCEEDED", []).rc == 0


def test_a_job_that_never_got_a_vm_says_why():
    words = "VM in Managed Instance Group meets error: Batch Error: code - CODE_GCE_QUOTA_EXCEEDED"
    state = parse_state("FAILED", [words])
    assert (state.rc, state.cause, state.reason) == (None, JobCause.QUOTA, words)
    assert parse_state("FAILED", ["no such image"]).cause == JobCause.SETUP
    assert parse_state("FAILED", []).reason


def test_jobs_are_asked_for_by_run():
    assert (
        build_filter(["b", "a", "a"], active=False)
        == '(labels.xqute_run="a" OR labels.xqute_run="b")'
    )
    text = build_filter(["a"], active=True)
    assert text.startswith('(labels.xqute_run="a") AND (')
    assert 'status.state="RUNNING"' in text
    assert "SUCCEEDED" not in text


def test_a_key_names_its_run():
    assert run_of_key("xq-0123abcd-5-0") == "0123abcd"
