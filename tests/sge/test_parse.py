"""What Grid Engine's programs print, read from what a real one (8.1.9) has printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xqute import JobCause, SchedulerError
from xqute.scheduler import Phase
from xqute_sge import parse
from xqute_sge.parse import Accounted

SAMPLES = Path(__file__).parent / "samples"
QUEUE = parse.parse_queue((SAMPLES / "qstat.xml").read_text())
REASONS = parse.parse_error_reasons((SAMPLES / "qstat-j.txt").read_text())
ACCOUNTING = parse.parse_accounting((SAMPLES / "qacct.txt").read_text())
ARRAY = "xqute.xq-0123abcd-8-0-a40"


# --- qsub -terse -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("216\n", "216"),
        ("219.1-4:1\n", "219"),
        ("219.1-1:1\n", "219"),
        ("Welcome to our cluster, version 8.1.9\n\n219.1-1000:1\nsite policy: be nice\n", "219"),
    ],
)
def test_the_id_of_a_submission_is_found(text, told):
    assert parse.parse_submitted(text) == told


@pytest.mark.parametrize(
    "text", ["", "Your job 216 has been submitted\n", "1\n2\n", "-5\n", "x.1-4:1"]
)
def test_an_answer_without_one_id_is_an_error_that_shows_it(text):
    with pytest.raises(SchedulerError, match="qsub gives no id"):
        parse.parse_submitted(text)


# --- qstat -xml --------------------------------------------------------------------------------


def test_a_running_job_has_its_whole_name():
    assert QUEUE["37"] == ("xqute.xq-0123abcd-7-0", "r", Phase.RUNNING)


def test_running_and_pending_tasks_of_one_array_are_told_apart():
    tasks = {jid: task for jid, task in QUEUE.items() if jid.startswith("40.")}
    running = {jid for jid, task in tasks.items() if task.phase is Phase.RUNNING}
    assert running == {"40.1", "40.2", "40.3"}
    left = {*range(4, 20), *range(21, 30), *range(33, 41)}  # 20 and 30-32 were deleted
    assert set(tasks) - running == {f"40.{task}" for task in left}
    assert {task.name for task in tasks.values()} == {ARRAY}


def test_steps_of_arrays_are_expanded():
    assert {jid for jid in QUEUE if jid.startswith("42.")} == {f"42.{n}" for n in range(3, 31, 3)}


def test_jobs_in_error_on_hold_and_rescheduled_are_pending():
    assert QUEUE["38"] == ("broken", "Eqw", Phase.PENDING)
    assert QUEUE["38"].is_broken
    assert QUEUE["39.2"].is_broken
    assert not QUEUE["40.4"].is_broken
    assert QUEUE["41"].phase is QUEUE["43"].phase is Phase.PENDING


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        *((state, Phase.PENDING) for state in ("qw", "hqw", "Rq", "hRwq", "Eqw", "EhRqw", "Rqw")),
        *(
            (state, Phase.RUNNING)
            for state in ("r", "t", "hr", "Rr", "Rt", "s", "ts", "S", "tT", "RtS")
        ),
        *((state, Phase.RUNNING) for state in ("dr", "dt", "dRr", "ds", "dT")),
    ],
)
def test_every_state_of_the_manual_is_known(state, phase):
    xml = (
        "<job_info><queue_info><job_list><JB_job_number>5</JB_job_number><JB_name>n</JB_name>"
        f"<state>{state}</state></job_list></queue_info></job_info>"
    )
    assert parse.parse_queue(xml)["5"].phase is phase


def test_an_empty_queue_is_no_error():
    assert (
        parse.parse_queue("<?xml version='1.0'?><job_info><queue_info/><job_info/></job_info>")
        == {}
    )


def test_a_state_that_no_manual_knows_is_named():
    xml = (SAMPLES / "qstat.xml").read_text().replace("<state>Rq</state>", "<state>X?</state>")
    with pytest.raises(SchedulerError, match=r"job 43 that it is 'X\?'"):
        parse.parse_queue(xml)


@given(st.integers(0, 3700))
def test_an_answer_that_is_cut_is_no_answer(length):
    with pytest.raises(SchedulerError, match="no XML"):
        parse.parse_queue((SAMPLES / "qstat.xml").read_text()[:length])


# --- qstat -j ----------------------------------------------------------------------------------


def test_reasons_are_told_without_date_and_process():
    assert REASONS["38"] == "can't chdir to /nonexistent: No such file or directory"


def test_each_task_of_an_array_has_its_own_reason():
    assert REASONS["39.2"] == 'can\'t open output file "/nonexistent/x": No such file or directory'
    assert "40" not in REASONS


# --- qacct -j ----------------------------------------------------------------------------------


def judged(jid):
    state = parse.state_of_accounted(ACCOUNTING[jid])
    return state.phase, state.rc, state.cause


def test_of_several_records_the_last_counts():
    assert ACCOUNTING["29"] == Accounted("rjy", 0, "", 0, 12.0)


def test_a_job_that_was_killed_has_ended():
    assert judged("1") == (Phase.ENDED, 137, None)
    assert judged("31") == (Phase.ENDED, 143, None)


def test_a_limit_of_time_is_told():
    assert judged("24") == (Phase.ENDED, 137, JobCause.TIME_LIMIT)


def test_a_job_that_could_not_be_set_up_has_no_exit_code():
    assert judged("2") == (Phase.ENDED, None, JobCause.SETUP)


@pytest.mark.parametrize("jid", ["32", "33", "3.1"])
def test_a_success_in_the_accounting_alone_is_none(jid):
    """The shepherd died (19), it was removed by force (0), or it is true: nobody knows."""
    assert judged(jid) == (Phase.ENDED, None, None)


def test_of_a_job_that_is_to_start_again_no_exit_code_is_known():
    assert judged("27") == (Phase.ENDED, None, None)


def test_a_job_that_grid_engine_has_lost_is_told_apart():
    record = Accounted("n", 21, "in recognizing job", 0, 0.0)
    assert record.was_forgotten
    assert parse.state_of_accounted(record)[:3] == (Phase.ENDED, None, None)


def test_the_words_of_the_accounting_are_kept():
    assert "qmaster enforced h_rt" in parse.state_of_accounted(ACCOUNTING["24"]).reason


@pytest.mark.parametrize(
    ("rc", "phase", "cause"),
    [
        (parse.RC_DELETED, Phase.ENDED, JobCause.REQUESTED),
        (parse.RC_TIME_LIMIT, Phase.ENDED, JobCause.TIME_LIMIT),
        (parse.RC_UNSEEN, Phase.ENDED, JobCause.SETUP),
        (parse.RC_UNSPEAKABLE, Phase.ENDED, None),
    ],
)
def test_what_the_launcher_exits_with_is_no_exit_code_of_the_command(rc, phase, cause):
    state = parse.state_of_accounted(Accounted("n", 0, "", rc, 1.0))
    assert (state.phase, state.rc, state.cause) == (phase, None, cause)


def test_a_broken_record_is_an_error():
    with pytest.raises(SchedulerError, match="cannot be read"):
        parse.parse_accounting("====\njobnumber 5\ntaskid undefined\nfailed \nexit_status 0\n")
