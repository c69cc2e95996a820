"""Words for people, the pace of a run, options from text: the pure parts of the command line."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xqute.cli.display import Pace, Snapshot, describe
from xqute.cli.settings import _as_value
from xqute.cli.template import build_shell_command
from xqute.cli.words import count, describe_command, duration, plain_text, rate, shortened


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1:00 min"),
        (3599.6, "1:00 h"),
        (7500, "2:05 h"),
        (86399.9, "1 d 0 h"),
        (100_000, "1 d 3 h"),
    ],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_counts_and_rates():
    assert (count(1, "job"), count(2143, "job")) == ("1 job", "2,143 jobs")
    assert count(2, "job was", "jobs were") == "2 jobs were"
    assert (rate(0.31), rate(1204.4)) == ("0.3/s", "1,204/s")


@given(st.text())
def test_no_text_steers_the_terminal(text):
    assert all(c in "\n\t" or c >= " " for c in plain_text(text))
    assert not any("\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in plain_text(text))


@given(st.text(), st.integers(min_value=5, max_value=200))
def test_a_line_is_as_short_as_it_must_be(text, width):
    line = shortened(text, width)
    assert len(line) <= width
    assert "\n" not in line


def test_what_is_cut_keeps_its_end():
    assert shortened("a" * 50 + "end", 20) == "aaaaaaaaaa…aaaaaaend"


def test_commands_are_shown_as_one_would_type_them():
    assert describe_command(("cp", "a b", "c")) == "cp 'a b' c"
    assert describe_command(build_shell_command("cat 'a b' | wc")) == "cat 'a b' | wc"
    name = os.fsdecode("é ü".encode())
    quoted = "".join(f"\\{byte:03o}" for byte in os.fsencode(name))
    assert describe_command(build_shell_command(f"cat $'{quoted}'")) == f"cat '{name}'"
    assert describe_command(build_shell_command(r"cat $'\033['")) == r"cat $'\033['"
    assert describe_command(("cat", "\udcff")) == "cat '\\udcff'"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-5", -5),
        ("0.5", 0.5),
        ("true", True),
        ("false", False),
        ("007", "007"),
        ("1.10", "1.10"),
        ("1e5", "1e5"),
        ("4G", "4G"),
        ("", ""),
        ("-0", "-0"),
        ("True", "True"),
        ("1_000", "1_000"),
        ("\u0663", "\u0663"),
    ],
)
def test_an_option_is_a_number_only_where_nothing_is_lost(text, value):
    found = _as_value(text)
    assert (found, type(found)) == (value, type(value))


def _snapshot(**changes):
    start = Snapshot(100, True, 2, 0, 50, 0, False)
    return start._replace(**changes)


def test_the_rate_is_that_of_the_last_seconds():
    now_s = 0.0
    pace = Pace(lambda: now_s)
    assert pace.per_s == 0
    for second in range(1, 101):
        now_s = float(second)
        pace.mark(second if second <= 50 else 50 + 10 * (second - 50))
    assert pace.per_s == pytest.approx(10)
    assert pace.left_s(_snapshot(n_known=1050, n_done=550)) == pytest.approx(50)
    assert pace.left_s(_snapshot(is_complete=False)) is None


def test_where_a_run_is_in_words():
    pace = Pace(iter(range(100)).__next__)
    assert [text for text, _ in describe(_snapshot(), pace)] == ["50/100", "2 running"]
    pace.mark(50)
    words = [text for text, _ in describe(_snapshot(n_failed=3, n_pending=7), pace)]
    assert words == ["50/100", "2 running", "7 pending", "3 failed", "50/s", "1.0 s left"]
    words = [text for text, _ in describe(_snapshot(is_complete=False), pace)]
    assert words == ["50/100+", "2 running", "50/s"]
    words = [text for text, _ in describe(_snapshot(is_stopping=True), pace)]
    assert words == ["50/100", "stopping", "2 running"]
