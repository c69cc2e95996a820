"""What Slurm's programs print, and what it means."""

from __future__ import annotations

import pytest

from xqute import SchedulerError
from xqute.cluster import Answer, as_submit_error
from xqute.scheduler import Phase
from xqute_slurm.parse import REFUSALS, join_jids, parse_sacct, parse_sbatch, parse_squeue


def test_the_id_is_taken_from_what_sbatch_prints():
    assert parse_sbatch("123\n") == "123"
    assert parse_sbatch("sbatch: a note of the site\n123;cluster\n") == "123"
    assert parse_sbatch("Submitted\n") is None


def test_the_queue_is_read():
    rows = parse_squeue(
        "1|N/A|FAILED|768|n1|NonZeroExitCode|a.sh|\n"
        "2|N/A|FAILED|9|n1|JobLaunchFailure|b.sh|\n"
        "3|1|PENDING|0||JobArrayTaskLimit|x|y|\n"
        "3|0|COMPLETING|0|n1|None|x|y|\n"
        "4|N/A|PENDING|0||PartitionTimeLimit|c|\n"
        "5|N/A|PENDING|0||QOSMaxCpuPerJobLimit|c|\n"
        "6|N/A|COMPLETED|0|n[1-2]|None|c|\n"
        "7|N/A|TIMEOUT|0|n1|TimeLimit|c|\n"
        "8|N/A|OUT_OF_MEMORY|125|n1|OutOfMemory|c|\n"
        "9|N/A|CANCELLED|15|n1|None|c|\n"
    )
    said = {jid: (row.state.phase, row.state.rc, row.state.cause) for jid, row in rows.items()}
    assert said == {
        "1": (Phase.ENDED, 3, None),
        "2": (Phase.ENDED, 137, None),
        "3_1": (Phase.PENDING, None, None),
        "3_0": (Phase.RUNNING, None, None),
        "4": (Phase.PENDING, None, None),
        "5": (Phase.PENDING, None, None),
        "6": (Phase.ENDED, 0, None),
        "7": (Phase.ENDED, None, "TIME_LIMIT"),
        "8": (Phase.ENDED, 137, "OUT_OF_MEMORY"),
        "9": (Phase.ENDED, 143, "REQUESTED"),
    }
    assert [jid for jid, row in rows.items() if row.waits_for_ever] == ["4", "5"]
    assert "PartitionTimeLimit" in rows["4"].state.reason
    assert (rows["3_1"].name, rows["3_1"].place, rows["3_1"].submission_id) == ("x|y", 1, "3")


def test_what_is_no_queue_is_an_error_that_names_it():
    with pytest.raises(SchedulerError, match="a new banner"):
        parse_squeue("a new banner\n")


def test_a_state_that_nobody_knows_is_no_end():
    assert parse_squeue("1|N/A|HIBERNATING|0|n1|None|a|\n")["1"].state.phase is Phase.RUNNING


def test_accounting_is_read():
    rows = parse_sacct(
        "1|COMPLETED|0:0|n1|a\n"
        "2|CANCELLED by 0|0:15|n1|a|b\n"
        "3_4|OUT_OF_MEMORY|0:125|n1|a\n"
        "5_[0-2,7%4]|CANCELLED by 7|0:0|None assigned|a\n"
        "1.batch|COMPLETED|0:0|n1|batch\n"
        "6|NODE_FAIL|1:0|n1|a\n"
    )
    said = {jid: (row.state.rc, row.state.cause) for jid, row in rows.items()}
    gone = (None, "REQUESTED")
    assert said == {
        "1": (0, None),
        "2": (143, "REQUESTED"),
        "3_4": (137, "OUT_OF_MEMORY"),
        **dict.fromkeys(("5_0", "5_1", "5_2", "5_7"), gone),
        "6": (1, "NODE_FAILED"),
    }
    assert rows["2"].name == "a|b"


def test_ids_are_joined():
    assert join_jids(["7", "9_1", "9_0", "9_2", "8_5", "9_7"]) == ["7", "9_[0-2,7]", "8_[5]"]
    assert join_jids([]) == []


@pytest.mark.parametrize(
    ("words", "transient", "maybe"),
    [
        ("Batch job submission failed: Socket timed out on send/recv operation", True, True),
        ("Batch job submission failed: Zero Bytes were transmitted or received", True, True),
        ("Unable to contact slurm controller (connect failure)", True, False),
        ("Slurm temporarily unable to accept job, sleeping and retrying", True, False),
        ("Batch job submission failed: Resource temporarily unavailable", True, False),
        (
            "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
            *(True, False),
        ),
        ("QOSMaxSubmitJobPerUserLimit", True, False),
        ("QOSMaxWallDurationPerJobLimit; Job violates accounting/QOS policy (...)", False, False),
        ("AssocGrpSubmitJobsLimit; Job violates accounting/QOS policy (...)", True, False),
        ("QOSMaxCpuPerUserLimit; Job violates accounting/QOS policy (...)", False, False),
        ("Requested time limit is invalid (missing or exceeds some limit)", False, False),
        ("Invalid time-min specification (exceeds job's time or other limits)", False, False),
        ("Protocol authentication error", True, False),
        ("invalid partition specified: nope", False, False),
        ("Memory specification can not be satisfied", False, False),
        ("unrecognized option '--bogus=1'", False, False),
    ],
)
def test_a_refusal_is_for_now_or_for_good(words, transient, maybe):
    error = as_submit_error(Answer(1, "", f"sbatch: error: {words}\n"), REFUSALS)
    assert (error.transient, error.maybe_submitted) == (transient, maybe)
    assert words in str(error)
