"""`xqute run`: what is run, what is passed on, and when."""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import select
import shlex
import signal
import subprocess

import pytest

from xqute.cli import inputs

pytestmark = pytest.mark.usefixtures("job_processes")


def read_within(stream, deadline_s=30):
    """What comes first from a pipe."""
    ready, _, _ = select.select([stream], [], [], deadline_s)
    assert ready, "nothing came"
    return os.read(stream.fileno(), 65536)


def records(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


# --- what is run ---------------------------------------------------------------------------------


def test_the_template_is_run_for_each_line(cli):
    done = cli("run", "-k", "echo hello {}", stdin=b"one\ntwo  'x\nthree")
    assert done.stdout == b"hello one\nhello two  'x\nhello three\n"


def test_an_empty_line_is_an_empty_argument(cli):
    assert cli("run", "-k", "printf '[%s]' {}", stdin=b"a\n\nb\n").stdout == b"[a][][b]"


def test_every_byte_of_every_name_arrives(cli, seed):
    draw = random.Random(seed)
    names = [bytes(draw.choices(range(1, 256), k=draw.randrange(30))) for _ in range(150)]
    names += [b"a b", b"$(id)", b"'", b'"', b"-n", b"*", b"\xff\xfe", b"a\nb", b"", "é".encode()]
    lines = b"".join(name + b"\0" for name in names)
    for template in ("printf '%s\\0' {}", 'x={}; printf "%s\\0" "$x"', "printf '%s\\0'"):
        assert cli("run", "-0k", template, stdin=lines).stdout == lines
    assert cli("run", "-0k", "printf", r"%s\0", "{}", stdin=lines).stdout == lines


def test_arguments_of_the_command_line_are_combined(cli):
    done = cli("run", "-k", "echo {2}-{1}", ":::", "a b", "--c", ":::", "1", "2")
    assert done.stdout == b"1-a b\n2-a b\n1---c\n2---c\n"


def test_without_a_template_each_line_is_a_command_for_bash(cli, tmp_path):
    (tmp_path / "commands").write_bytes(b"echo a | tr a b\n\n  # no command\nx='1 2'; echo $x\n")
    assert cli("run", "-k", "-f", "commands").stdout == b"b\n1 2\n"
    assert cli("run", "-k", stdin=b"echo a | tr a b\n# no\n \nls -d /\n").stdout == b"b\n/\n"


def test_a_file_can_hold_the_arguments(cli, tmp_path):
    (tmp_path / "names").write_bytes(b"a\nb\n")
    assert cli("run", "-k", "-f", "names", "echo {}").stdout == b"a\nb\n"
    assert cli("run", "-k", "-f", "-", "echo {}", stdin=b"c\n").stdout == b"c\n"


def test_exported_functions_are_there_as_for_any_bash(cli):
    env = {"BASH_FUNC_greet%%": "() { echo hi $1; }"}
    assert cli("run", "greet {}", ":::", "you", env=env).stdout == b"hi you\n"
    assert cli("run", stdin=b"greet me\n", env=env).stdout == b"hi me\n"


def test_options_may_come_after_a_line_for_the_shell_and_belong_to_a_command_of_words(cli):
    done = cli("run", "printf '%s.' {}", "-k", "-j", "2", ":::", "a", "b")
    assert done.stdout == b"a.b."
    assert cli("run", "-k", "printf", "%s.", "-j", ":::", "a", "b").stdout == b"-j.a.-j.b."


def test_commands_get_no_standard_input(cli):
    assert cli("run", "cat; echo {}", stdin=b"a\n").stdout == b"a\n"


def test_variables_folder_and_code_around_a_command(cli, tmp_path):
    (tmp_path / "there").mkdir()
    options = ["--env", "A=b c", "--env", "D=\udcff", "--cwd", "there"]
    options += ["--prescript", "export P=pre", "--postscript", "echo post >&2"]
    done = cli("run", *options, "--output", "both", 'echo "$A$D $P ${PWD##*/}" {}', ":::", "x")
    assert done.stdout == b"b c\xff pre there x\n"
    assert b"post\n" in done.stderr


def test_a_failed_job_is_tried_again(cli):
    command = "[ $XQUTE_JOB_TRIAL = {} ]"
    done = cli("run", "--retries", "2", "--json", command, ":::", "0", "1", "2", "3", rc=1)
    *jobs, summary = records(done)
    assert {job["index"]: job["attempts"] for job in jobs} == {0: 1, 1: 2, 2: 3, 3: 3}
    assert (summary["succeeded"], summary["failed"], summary["retried"]) == (3, 1, 3)
    assert "tried 3 times" in done.stderr.decode()
    assert "3 jobs were tried again" in done.stderr.decode()


def test_halt_begins_nothing_after_a_failure(cli):
    done = cli("run", "--halt", "-j1", "-k", "echo {}; exit {}", ":::", "0", "3", "0", rc=1)
    assert done.stdout == b"0\n3\n"
    assert b"1 succeeded, 1 failed, 1 not begun" in done.stderr


def test_halt_at_a_first_line_that_can_be_no_command(cli):
    process = cli.start("run", "--halt", "echo {} | cat")
    cli.wait_for(lambda: len(os.listdir(f"/proc/{process.pid}/task")) == 3)  # it waits for a line
    _, stderr = process.communicate(b"a\0b\nmore\n", timeout=30)
    assert process.returncode == 1
    assert b"not a command: line 1" in stderr


def test_halt_after_the_last_try(cli):
    command = "echo $XQUTE_JOB_TRIAL {}; exit {}"
    done = cli("run", "--halt", "--retries", "1", "-j1", "--json", command, ":::", "3", "0", rc=1)
    *jobs, summary = records(done)
    failed = [job for job in jobs if job["outcome"] == "failed"]
    assert [(job["index"], job["attempts"]) for job in failed] == [(0, 2)]
    assert summary["stopped_by"] is None


def test_a_timeout_ends_a_job(cli):
    done = cli("run", "--timeout", "0.2", "--json", "sleep {}", ":::", "0", "60", rc=1)
    *jobs, summary = records(done)
    assert {job["index"]: job["outcome"] for job in jobs} == {0: "succeeded", 1: "timeout"}
    assert (summary["timeout"], summary["exit_code"]) == (1, 1)


def test_forks_run_at_once(cli):
    """Each job waits for the other."""
    command = "touch {1}; until [ -e {2} ]; do sleep 0.01; done"
    cli(
        "run",
        "-j2",
        stdin=command.replace("{1}", "a").replace("{2}", "b").encode()
        + b"\n"
        + command.replace("{1}", "b").replace("{2}", "a").encode(),
    )


# --- folders -------------------------------------------------------------------------------------


def test_each_run_has_a_folder_of_its_own_and_latest_is_the_last(cli):
    cli("run", "echo {}", ":::", "a")
    first = cli.latest.resolve()
    assert (first / "0" / "job.stdout").read_text() == "a\n"
    cli("run", "echo {}", ":::", "b")
    assert (cli.latest / "0" / "job.stdout").read_text() == "b\n"
    assert (first / "0" / "job.stdout").read_text() == "a\n"
    names = sorted(path.name for path in first.parent.iterdir())
    assert names == sorted([first.name, cli.latest.resolve().name, "latest"])


def test_a_workdir_is_used_as_it_is(cli, tmp_path):
    cli("run", "--workdir", "here/there", "echo {}", ":::", "a")
    assert (tmp_path / "here" / "there" / "0" / "job.rc").read_text() == "0"
    assert not (tmp_path / ".xqute").exists()


def test_nothing_to_run_leaves_nothing_behind(cli, tmp_path):
    cli("run", "echo {}", rc=2)
    assert list(tmp_path.iterdir()) == []


# --- what is passed on ---------------------------------------------------------------------------


def test_the_output_of_a_job_is_in_one_piece(cli):
    command = "for i in 1 2 3 4 5; do echo {} $i; sleep 0.02; done"
    lines = cli("run", "-j4", command, ":::", "a", "b", "c", "d").stdout.decode().split("\n")
    assert len(lines) == 21
    for begin in range(0, 20, 5):
        name = lines[begin][0]
        assert lines[begin : begin + 5] == [f"{name} {i}" for i in range(1, 6)]


@pytest.mark.parametrize("options", [[], ["-k"]])
def test_output_comes_when_a_job_ends_or_in_the_order_of_the_input(cli, tmp_path, options):
    command = "echo {}; until [ -e {}.go ]; do sleep 0.01; done"
    process = cli.start("run", "-j2", *options, command, ":::", "a", "b")
    (tmp_path / "b.go").touch()
    cli.wait_for((cli.latest / "1" / "job.rc").exists)
    first = b"" if options else read_within(process.stdout)
    (tmp_path / "a.go").touch()
    rest, _ = process.communicate(timeout=30)
    assert first + rest == (b"a\nb\n" if options else b"b\na\n")


def test_output_can_be_left_in_the_files(cli):
    for options in (["--no-output"], ["--output", "none"]):
        assert cli("run", *options, "echo {}; echo e >&2", ":::", "a").stdout == b""
        assert (cli.latest / "0" / "job.stdout").read_text() == "a\n"


def test_standard_error_is_passed_on_if_asked_for(cli):
    done = cli("run", "--output", "both", "echo {}; echo warning {} >&2", ":::", "a")
    assert (done.stdout, b"warning a\n" in done.stderr) == (b"a\n", True)
    assert b"warning" not in cli("run", "echo warning >&2; echo {}", ":::", "a").stderr


def test_output_that_cannot_be_read_is_told_and_the_others_run(cli):
    command = 'echo {}; f=$XQUTE_JOB_METADIR/job.stdout; [ {} != a ] || { rm "$f"; mkdir "$f"; }'
    done = cli("run", "-j1", command, ":::", "a", "b", "c")
    assert done.stdout == b"b\nc\n"
    assert b"/0/job.stdout: Is a directory" in done.stderr


def test_output_of_any_size_and_kind_is_passed_on_exactly(cli):
    command = "head -c 3000000 /dev/zero; printf '\\377no newline'"
    done = cli("run", command + " #", ":::", rc=2)
    done = cli("run", f"{command}; : {{}}", ":::", "a")
    assert done.stdout == b"\0" * 3_000_000 + b"\xffno newline"


def test_a_reader_who_is_slow_holds_up_no_job(cli):
    process = cli.start("run", "head -c 100000 /dev/zero; : {}", ":::", *map(str, range(20)))
    cli.wait_for(lambda: len(list(cli.latest.glob("*/job.rc"))) == 20)
    stdout, _ = process.communicate(timeout=30)
    assert len(stdout) == 20 * 100_000


def test_json_tells_every_job_and_the_whole(cli):
    done = cli("run", "--json", "-k", "echo {}; exit {}", ":::", "0", "3", rc=1)
    first, second, summary = records(done)
    assert (first["type"], first["index"], first["outcome"], first["rc"]) == (
        "job",
        0,
        "succeeded",
        0,
    )
    assert (second["outcome"], second["rc"], second["cause"]) == ("failed", 3, "EXIT_CODE")
    assert second["submitted_at"] <= second["started_at"] <= second["ended_at"]
    with open(second["stdout_file"]) as file:
        assert file.read() == "3\n"
    assert summary == summary | {
        "type": "summary",
        "total": 2,
        "succeeded": 1,
        "failed": 1,
        "not_started": 0,
        "exit_code": 1,
        "workdir": str(cli.latest.resolve()),
    }


def test_json_keeps_bytes_that_are_no_text(cli):
    job, _ = records(cli("run", "--json", "true {}", stdin=b"a\xffb\n"))
    assert os.fsencode(job["command"][-1]).endswith(b"'a\\377b'")
    job, _ = records(cli("run", "--json", "true", "{}", stdin=b"a\xffb\n"))
    assert os.fsencode(job["command"][-1]) == b"a\xffb"


# --- reading while running -----------------------------------------------------------------------


def test_the_first_job_starts_before_the_second_line_is_there(cli):
    process = cli.start("run", "echo got {}")
    for name in (b"a", b"b"):
        process.stdin.write(name + b"\n")
        process.stdin.flush()
        assert read_within(process.stdout) == b"got " + name + b"\n"
    process.stdin.close()
    assert process.wait(30) == 0


def test_lines_without_end_fill_neither_memory_nor_disk(cli):
    """Endless input: only what is about to run becomes a job, and reading pauses."""

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (1_500_000_000, 1_500_000_000))

    with subprocess.Popen(["yes"], stdout=subprocess.PIPE) as yes:
        command = ("run", "--no-output", "sleep 60; : {}")
        process = cli.start(*command, stdin=yes.stdout, preexec_fn=limit)
        cli.wait_for((cli.latest / "999").exists)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        yes.kill()
    assert process.returncode == 130
    assert b"not begun" in stderr
    assert len(list(cli.latest.glob("[0-9]*"))) <= 1001


def test_the_reader_pauses_when_it_is_far_ahead(monkeypatch):
    monkeypatch.setattr(inputs, "_MOST_AHEAD_BYTES", 100_000)
    n_lines, furthest = 1_000_000, 0

    async def read(fd):
        nonlocal furthest
        source = inputs.LineInput(fd, _Nothing(), separator=b"\0")
        async for _ in source:
            furthest = max(furthest, source._n_ahead_bytes)
        assert (source.n_known, source.is_complete) == (n_lines, True)

    head = ["head", "-c", str(n_lines), "/dev/zero"]
    with subprocess.Popen(head, stdout=subprocess.PIPE) as zeros:
        asyncio.run(read(zeros.stdout.fileno()))
    assert 100_000 <= furthest <= 100_000 + 65_536


class _Nothing:
    """A template that is quick."""

    def build(self, values):
        return ()


def test_many_lines_are_all_run_and_counted(cli):
    lines = b"".join(b"%d\n" % i for i in range(1500))
    done = cli("run", "--no-output", "true", "{}", stdin=lines)
    assert b"1,500 succeeded" in done.stderr
    assert len(list(cli.latest.glob("[0-9]*"))) == 1500


def test_a_command_that_cannot_be_a_job_is_told_and_the_others_run(cli):
    lines = b"a\0b\n" + b"x" * 200_000 + b"\nok\n"
    done = cli("run", "echo {} | wc -c", stdin=lines, rc=1)
    assert done.stdout == b"3\n"
    assert b"line 1: a NUL cannot be passed" in done.stderr
    assert b"line 2: Argument 2 of the command is" in done.stderr
    assert b"1 succeeded, 2 not a command" in done.stderr


# --- the end -------------------------------------------------------------------------------------


def test_failures_are_told_with_their_last_words(cli):
    command = (
        "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; printf '\\033[31mred' >&2; exit {}"
    )
    text = cli("run", command, ":::", "0", "7", rc=1).stderr.decode()
    assert "#1 for i in 1 2 3" in text
    assert "failed: exit code 7" in text
    assert "line 3\n" not in text
    assert "line 4\n" in text
    assert "\\x1b[31mred" in text  # what a job wrote does not steer the terminal
    assert "\033" not in text
    assert "1 succeeded, 1 failed in" in text


def test_ten_failures_are_shown_and_the_others_counted(cli):
    text = cli("run", "exit {}", ":::", *["1"] * 12, rc=1).stderr.decode()
    assert sum(line.startswith("#") for line in text.splitlines()) == 10
    assert "... and 2 more: xqute status --failed .xqute/runs/" in text


def test_the_command_that_lists_all_failures_can_be_typed(cli, tmp_path):
    done = cli("run", "--workdir", "my run", "exit {}", ":::", *["1"] * 11, rc=1)
    line = next(line for line in done.stderr.decode().splitlines() if " more: " in line)
    words = shlex.split(line.partition(" more: ")[2])
    assert len(cli(*words[1:], rc=1).stdout.splitlines()) == 13  # eleven, their number, its parts


def test_names_that_are_not_ascii_can_be_read(cli):
    text = cli("run", "false {}", ":::", "é à", rc=1, env={"PYTHONUTF8": "1"}).stderr.decode()
    assert "false 'é à'" in text


@pytest.mark.parametrize("columns", ["0", "1"])
def test_the_account_needs_no_width(cli, columns):
    text = cli("run", "exit {}", ":::", "7", rc=1, env={"COLUMNS": columns}).stderr.decode()
    assert "#0 exit '7'" in text
    assert "1 failed in" in text


def test_quiet_says_nothing(cli):
    done = cli("run", "-q", "echo {}; exit {}", ":::", "0", "1", rc=1)
    assert done.stderr == b""


def test_a_profile_gives_options_and_the_command_line_wins(cli, tmp_path):
    (tmp_path / "xqute.toml").write_text(
        """
        [profile.default]
        name = "usual"
        [profile.twice]
        retries = 1
        keep-order = true
        env = { A = "x y", N = 5, YES = true }
        opt = { recheck_interval = 3 }
        """
    )
    (tmp_path / "below").mkdir()
    command = "echo $A$N$YES $XQUTE_JOB_TRIAL; exit {}"
    done = cli("run", "-p", "twice", command, ":::", "0", "1", rc=1, cwd=tmp_path / "below")
    assert done.stdout == b"x y5true 0\nx y5true 1\n"
    done = cli("run", "-p", "twice", "--retries", "0", command, ":::", "1", rc=1)
    assert done.stdout == b"x y5true 0\n"
    assert cli("run", "echo {}$A", ":::", "a").stdout == b"a\n"


def test_the_scheduler_gets_its_options(backends):
    assert (
        "no queue 'q'"
        in backends("run", "-s", "picky", "--opt", "queue=q", "x", ":::", "a", rc=2).stderr.decode()
    )
    # Given twice it is a list, which this scheduler accepts; it then loses the job.
    backends("run", "-s", "picky", "--opt", "queue=q", "--opt", "queue=r", "x", ":::", "a", rc=3)


def test_an_option_that_every_scheduler_has_may_be_given(cli):
    assert cli("run", "--opt", "submission_batch=2", "echo {}", ":::", "a").stdout == b"a\n"


# --- again ---------------------------------------------------------------------------------------


def test_a_run_is_resumed_where_it_stopped(cli, tmp_path):
    command = "echo {} >>ran; [[ {} != b || -e ok ]] && echo {}"
    args = ("-k", "--workdir", "w", command, ":::", "a", "b", "c")
    assert cli("run", *args, rc=1).stdout == b"a\nc\n"
    (tmp_path / "ok").touch()
    (tmp_path / "ran").unlink()
    done = cli("run", "--resume", *args)
    assert done.stdout == b"a\nb\nc\n"
    assert (tmp_path / "ran").read_text() == "b\n"
    assert b"2 jobs were started by an earlier run" in done.stderr


def test_a_run_that_was_killed_is_resumed_without_its_name(cli, tmp_path):
    command = "echo {} >>ran; until [ -e go ]; do sleep 0.01; done; echo {}"
    process = cli.start("run", "-k", "-j2", command, ":::", "a", "b", "c")
    cli.wait_for(lambda: (tmp_path / "ran").exists() and len((tmp_path / "ran").read_text()) == 4)
    process.kill()
    process.wait()
    (tmp_path / "go").touch()
    done = cli("run", "-k", "--resume", command, ":::", "a", "b", "c")
    assert done.stdout == b"a\nb\nc\n"
    assert sorted((tmp_path / "ran").read_text().split()) == ["a", "b", "c"]


def test_what_still_runs_is_not_run_as_something_else(cli, tmp_path):
    command = "echo {} >>ran; until [ -e go ]; do sleep 0.01; done"
    process = cli.start("run", command, ":::", "a")
    cli.wait_for((tmp_path / "ran").exists)
    process.kill()
    process.wait()
    done = cli("run", "--resume", "echo other {}", ":::", "a", rc=1)
    assert b"Job 0 is still there from an earlier run" in done.stderr
    done = cli("run", "--resume", "--on-change=rerun", "echo other {}", ":::", "a")
    assert done.stdout == b"other a\n"
    assert (tmp_path / "ran").read_text() == "a\n"


def test_there_must_be_a_run_to_resume(cli):
    assert b"There is no run in" in cli("run", "--resume", "true", ":::", "a", rc=2).stderr
