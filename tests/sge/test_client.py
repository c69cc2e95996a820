"""What is made of the answers of Grid Engine's programs, and of answers that do not come."""

from __future__ import annotations

import pytest

from xqute import JobCause, SubmitError
from xqute.cluster import Answer
from xqute_sge import SgeScheduler
from xqute_sge.client import as_refusal, build_id_ranges

# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rc", "text"),
    [
        (
            1,
            'Unable to run job: Job was rejected because job requests unknown queue "x"\n',
        ),
        (1, 'Unable to run job: unknown resource "nope"\nExiting.\n'),
        (1, 'Unable to run job: attribute "h_rt" is not a time value\nExiting.\n'),
        (1, "Unable to run job: error: no suitable queues\nExiting.\n"),
        (
            1,
            "Unable to run job: job rejected: you tried to submit a job with more than 9 tasks\n",
        ),
        (2, 'Unable to read script file because of error: invalid option argument "-nope"\n'),
        (
            1,
            "Unable to initialize environment because of error: Please set SGE_ROOT.\n",
        ),
    ],
)
def test_what_will_never_be_accepted_is_told_in_qsubs_words(rc, text):
    error = as_refusal(Answer(rc, "", text))
    assert (error.transient, error.maybe_submitted) == (False, False)
    assert text.splitlines()[0].removeprefix("Unable to run job: ").strip(". ") in str(error)
    assert "Exiting" not in str(error)


def test_a_limit_of_jobs_passes():
    text = "Unable to run job: job rejected: only 5 jobs are allowed per user (current: 5)\n"
    error = as_refusal(Answer(25, "", text))
    assert (error.transient, error.maybe_submitted, error.cause) == (True, False, JobCause.QUOTA)


def test_a_qmaster_that_is_down_passes_and_has_nothing():
    text = (
        "error: commlib error: got select error (Connection refused)\nUnable to run job: unable to "
        'send message to qmaster using port 6444 on host "m": got send error\nExiting.\n'
    )
    error = as_refusal(Answer(1, "", text))
    assert (error.transient, error.maybe_submitted) == (True, False)


@pytest.mark.parametrize("words", ["got read timeout", "Error reading answer list from qmaster"])
def test_an_answer_that_was_lost_may_be_a_submission(words):
    assert as_refusal(Answer(1, "", f"Unable to run job: {words}\nExiting.\n")).maybe_submitted


# --- qdel --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jids", "ranges"),
    [
        ([], []),
        (["5"], ["5"]),
        (["5.1"], ["5.1"]),
        (["5.3", "5.1", "5.2", "6", "5.9"], ["6", "5.1-3", "5.9"]),
        (["7.1", "8.2", "7.2", "8.1"], ["7.1-2", "8.1-2"]),
    ],
)
def test_tasks_in_a_row_are_one_argument(jids, ranges):
    assert build_id_ranges(jids) == ranges


# --- programs ----------------------------------------------------------------------------------


async def test_a_program_that_is_assigned_is_the_one_that_is_run(tmp_path):
    scheduler = SgeScheduler(tmp_path, qsub="/no/qsub")
    assert (scheduler.qsub, scheduler.qdel) == ("/no/qsub", "qdel")
    scheduler.qsub = "/other/qsub"
    with pytest.raises(SubmitError, match="/other/qsub"):
        await scheduler.submit_job(scheduler.create_job(0, "true"))
