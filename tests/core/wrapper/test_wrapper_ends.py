"""What the wrapper tells of an end is what happened, whatever users' code does around it."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess

import pytest

from xqute import _protocol

# One command, three ways to run it: alone, among hooks, under a timeout.
WAYS = pytest.mark.parametrize(
    "way",
    [{}, {"postscript": ":"}, {"timeout_s": 60}, {"timeout_s": 60, "prescript": ":"}],
    ids=["plain", "hooked", "timeout", "hooked-timeout"],
)
FATAL = sorted(
    {*range(1, 32)}
    - {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    - {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
)


# --- the command's own end ------------------------------------------------------------------------


@WAYS
def test_an_attempt_leaves_its_outputs_rc_and_status(make_attempt, way):
    attempt = make_attempt(["sh", "-c", "echo out; echo err >&2"], **way).run()
    assert (attempt.stdout, attempt.stderr) == (b"out\n", b"err\n")
    assert attempt.end == (0, 6, "")
    assert attempt.exit_code == 0
    assert attempt.events == []


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 2.0**63], ids=str)
def test_a_time_limit_may_be_as_long_as_can_be(make_attempt, seconds):
    attempt = make_attempt(["echo", "out"], timeout_s=seconds, grace_s=seconds).run()
    assert (attempt.stdout, attempt.end) == (b"out\n", (0, 6, ""))


def test_every_exit_code_is_told_as_it_is(make_attempt):
    for code in range(256):
        attempt = make_attempt(["sh", "-c", f"exit {code}"]).run()
        assert attempt.exit_code == code
        assert attempt.end == (code, 6 if code == 0 else 7, "")


@WAYS
@pytest.mark.parametrize("code", [0, 1, 2, 121, 122, 125, 126, 127, 128, 129, 137, 143, 255])
def test_exit_codes_that_mean_something_elsewhere_are_told_as_they_are(make_attempt, way, code):
    attempt = make_attempt(["sh", "-c", f"exit {code}"], **way).run()
    assert attempt.end == (code, 6 if code == 0 else 7, "")


@pytest.mark.parametrize("way", [{}, {"prescript": ":"}], ids=["plain", "hooked"])
@pytest.mark.parametrize("number", FATAL)
def test_a_death_by_signal_n_is_128_plus_n_and_bash_adds_no_words(make_attempt, probe, number, way):
    attempt = make_attempt([*probe, "die", str(number)], **way, wrapper_init="ulimit -c 0")
    with (attempt.folder / "wrapper's stderr").open("wb") as stderr:
        attempt.run(stderr=stderr)
    assert attempt.end == (128 + number, 7, "")
    assert (attempt.stdout, attempt.stderr) == (b"", b"")
    assert attempt.read("wrapper's stderr") == b""


@WAYS
def test_a_command_that_is_not_found_is_127(make_attempt, way):
    attempt = make_attempt(["no-such-command"], **way).run()
    assert attempt.end == (127, 7, "")
    assert b"no-such-command: not found" in attempt.stderr.replace(b"command not", b"not")


@WAYS
def test_a_command_that_is_not_executable_is_126(make_attempt, way, tmp_path):
    (tmp_path / "data").write_text("text")
    attempt = make_attempt([str(tmp_path / "data")], **way).run()
    assert attempt.end == (126, 7, "")
    assert b"Permission denied" in attempt.stderr


@WAYS
@pytest.mark.parametrize(
    ("argv", "rc", "stdout"),
    [
        (["exit", "3"], 3, b""),
        (["false"], 1, b""),
        (["echo", "-n", "*"], 0, b"*"),
        (["[", "a", "=", "b", "]"], 1, b""),
        (["eval", "echo a; exit 4"], 4, b"a\n"),
        (["exec", "sh", "-c", "exit 5"], 5, b""),
        (["trap", "echo b", "EXIT"], 0, b"b\n"),
        (["set", "-e"], 0, b""),
    ],
)
def test_a_builtin_can_be_a_command(make_attempt, way, argv, rc, stdout):
    attempt = make_attempt(argv, **way).run()
    assert attempt.end == (rc, 6 if rc == 0 else 7, "")
    assert attempt.stdout == stdout


@pytest.mark.parametrize("word", ["time", "if", "{", "!", "[[", "coproc", "function"])
def test_a_shell_keyword_is_a_name_like_any_other(make_attempt, word, tmp_path):
    (tmp_path / word).write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / word).chmod(0o700)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for way in ({}, {"prescript": ":"}):
        assert make_attempt([word, "a"], **way).run(environ=environ).end == (9, 7, "")


@WAYS
def test_the_working_directory_that_is_missing_is_a_set_up_failure(make_attempt, way, tmp_path):
    attempt = make_attempt(["touch", str(tmp_path / "ran")], cwd="/no/such folder", **way).run()
    assert attempt.end == (125, 7, "SETUP")
    assert attempt.exit_code == 125
    assert b"/no/such folder: No such file or directory" in attempt.stderr
    assert not (tmp_path / "ran").exists()


@WAYS
def test_descendants_that_live_on_do_not_delay_the_end(make_attempt, way):
    command = ["sh", "-c", "sleep 60 & sleep 61 >&- 2>&- <&- & exit 3"]
    attempt = make_attempt(command, **way).run()
    assert attempt.end == (3, 7, "")


@WAYS
def test_events_name_every_change(make_attempt, way):
    attempt = make_attempt(
        ["sh", "-c", "exit 3"], index=12, attempt=2, restart="1", spool=True, **way
    ).run()
    started, ended = attempt.events
    assert started[:5] == (12, 2, 1, 4, -1)
    assert ended[:5] == (12, 2, 1, 7, 3)
    written_ms = (attempt.folder / "job.start.2").stat().st_mtime * 1000
    assert written_ms - 1000 < started.epoch_ms <= ended.epoch_ms < written_ms + 30_000


# --- hooks ----------------------------------------------------------------------------------------

EVERY_HOOK = {
    "jobcmd_init": "echo init",
    "prescript": "echo pre",
    "jobcmd_prep": "echo prep",
    "postscript": 'echo post; [[ $(<"$xq_dir/job.status") == 4 ]] || echo "told too early"',
    "jobcmd_end": 'echo end; [[ $(<"$xq_dir/job.status") == 4 ]] || echo "told too early"',
}


def test_hooks_run_in_order_and_the_end_is_told_after_them(make_attempt):
    attempt = make_attempt(["echo", "cmd"], **EVERY_HOOK).run()
    assert attempt.stdout.split() == [b"init", b"pre", b"prep", b"cmd", b"post", b"end"]
    assert attempt.end == (0, 6, "")


def test_hooks_share_a_shell_with_each_other(make_attempt):
    attempt = make_attempt(
        ["sh", "-c", "echo $exported $PWD"],
        jobcmd_init="declare -A table=([a]=1); helper() { echo helped; }",
        prescript="export exported=yes; plain=2; cd /",
        postscript='echo "$plain $PWD"',
        jobcmd_end='helper; echo "${table[a]}"',
    ).run()
    assert attempt.stdout == b"yes /\n2 /\nhelped\n1\n"


def test_jobcmd_prep_may_replace_the_command(make_attempt):
    attempt = make_attempt(
        ["echo", "a b", "$c"], jobcmd_prep='cmd="printf %s- $cmd | cat; exit 6"'
    ).run()
    assert attempt.stdout == b"echo-a b-$c-"
    assert attempt.end == (6, 7, "")


@pytest.mark.parametrize(
    "code", ["exit 9", "false", "rc=9", "exec false", "set -e; false", "return 9"]
)
@pytest.mark.parametrize("hook", ["postscript", "jobcmd_end"])
def test_what_runs_after_the_command_cannot_change_its_rc(make_attempt, hook, code):
    for rc in (0, 5):
        attempt = make_attempt(["sh", "-c", f"exit {rc}"], **{hook: code}).run()
        assert attempt.end == (rc, 6 if rc == 0 else 7, "")


def test_jobcmd_end_sees_the_rc_also_after_a_postscript_that_exits(make_attempt):
    attempt = make_attempt(
        ["sh", "-c", "exit 5"], postscript="exit 9", jobcmd_end="echo rc=$rc"
    ).run()
    assert attempt.stdout == b"rc=5\n"


@pytest.mark.parametrize("hook", ["jobcmd_init", "prescript", "jobcmd_prep"])
@pytest.mark.parametrize(
    ("code", "rc"),
    [
        ("exit 4", 4),
        ("exit 0", 1),
        ("set -e; false; echo not reached", 1),
        ("set -u; echo $undefined", 1),
        (": ${undefined:?}", 1),
        ("if; then", 2),
        ("echo 'unfinished", 2),
        ("fi", 2),
        ("}", 2),
        (")", 2),
        ("cat <<EOF", 2),
        ("return 4", 4),
        ("exec true", 1),
        ("exec sh -c 'exit 4'", 4),
        ("exec no-such-command", 127),
        ("trap 'echo mine' EXIT; exit 4", 4),
        ("trap - EXIT; exit 4", 4),
    ],
)
def test_code_that_ends_the_job_before_its_command_fails_it(make_attempt, tmp_path, hook, code, rc):
    attempt = make_attempt(["touch", str(tmp_path / "ran")], **{hook: code}).run()
    assert attempt.end == (rc, 7, "NOT_STARTED")
    assert not (tmp_path / "ran").exists()
    assert attempt.stderr.endswith(
        b"xqute: the prescript or a hook ended this job before its command\n"
    )


def test_jobcmd_end_runs_also_when_the_prescript_exited(make_attempt):
    for code, rc in ((4, 4), (0, 1)):
        attempt = make_attempt(
            ["true"], prescript=f"exit {code}", jobcmd_end="echo rc=$rc; exit 99"
        ).run()
        assert attempt.stdout == b"rc=%d\n" % rc
        assert attempt.end == (rc, 7, "NOT_STARTED")


@pytest.mark.parametrize(
    "code",
    [
        "set -e",
        "set -u",
        "set -euo pipefail",
        "set -m",
        "set -C",
        "set -a",
        "set -f; shopt -s nullglob failglob",
        "set -o posix",
        "set -x; exec 2>/dev/null",
        "false",
        "IFS=jobx0q",
        "PATH=/nowhere",
        "unset HOME PATH IFS",
        "cd /",
        "umask 0777; umask 0077",
        "export TMOUT=1 POSIXLY_CORRECT=1 LC_ALL=C IFS=: BASH_ENV=/nowhere",
        "trap 'echo mine >&2' EXIT",
        "trap 'exit 9' TERM INT EXIT",
        "trap '' TERM",
        "shopt -s expand_aliases; alias printf=false trap=false exit=true builtin=false eval=false",
        "printf() { :; }; read() { :; }; trap() { :; }; eval() { :; }; set() { :; }",
        "declare() { :; }; local() { :; }; exit() { :; }; return() { :; }; cd() { :; }",
        "unset() { :; }; export() { :; }; exec() { :; }; wait() { :; }; kill() { :; }; rm() { :; }",
        "sleep() { return 9; }; unalias -a",
        "exec 3>/dev/null 4>/dev/null 5>&1",
        "exec </dev/zero",
        "exec 2>&-",
        "ulimit -n 10",
        "sleep 60 &",
        "rc=9; status=9; cmd=false; code=9; what=rc=; told=9; now=9",
        "readonly rc=9 status=9 now=9 told=9 what=9 pid=9",
        "echo 'rc= 9'",
        "# a comment at the end",
        "echo done \\",
        "cat <<EOF >/dev/null\ntext\nEOF",
    ],
)
@pytest.mark.parametrize("way", [{}, {"timeout_s": 60}], ids=["untimed", "timed"])
def test_what_the_prescript_leaves_behind_does_not_touch_the_telling(
    make_attempt, probe, code, way
):
    attempt = make_attempt([*probe, "keep", "37", "1"], prescript=code, spool=True, **way).run()
    assert attempt.end == (37, 7, "")
    assert [event.status for event in attempt.events] == [4, 7]


def test_shell_options_of_the_prescript_end_with_it(make_attempt):
    attempt = make_attempt(
        ["true"],
        prescript="set -euo pipefail; set -m",
        jobcmd_prep="cmd='echo $- $undefined; false; false | true; exit $?'",
    ).run()
    assert attempt.end == (0, 6, "")
    assert not set("eum") & set(attempt.stdout.split()[0].decode())


def test_the_prescript_may_send_the_commands_output_elsewhere(make_attempt, tmp_path):
    attempt = make_attempt(["echo", "hi"], prescript=f"exec >'{tmp_path}/elsewhere'").run()
    assert attempt.stdout == b""
    assert (tmp_path / "elsewhere").read_bytes() == b"hi\n"
    assert attempt.end == (0, 6, "")


def test_the_prescripts_own_exit_trap_runs_after_the_command(make_attempt):
    attempt = make_attempt(
        ["echo", "cmd"], prescript="trap 'echo cleaned' EXIT", jobcmd_end="echo end"
    ).run()
    assert attempt.stdout == b"cmd\nend\ncleaned\n"


def test_the_prescript_may_close_all_streams(make_attempt, tmp_path):
    command = ["sh", "-c", 'echo ran >"$0"; exit 6', str(tmp_path / "ran")]
    attempt = make_attempt(command, prescript="exec <&- >&- 2>&-").run()
    assert attempt.end == (6, 7, "")
    assert (tmp_path / "ran").exists()


def test_a_function_of_the_prescript_can_be_the_command(make_attempt):
    attempt = make_attempt(["greet", "a b"], prescript='greet() { echo "<$1>"; exit 8; }').run()
    assert attempt.stdout == b"<a b>\n"
    assert attempt.end == (8, 7, "")


def test_a_syntax_error_names_the_wrapper_and_the_text(make_attempt):
    attempt = make_attempt(["true"], prescript="echo a\nif; then\n").run()
    assert re.search(
        rb"job\.wrapped\.test: eval: line \d+: syntax error near unexpected", attempt.stderr
    )


def test_a_killed_wrapper_leaves_its_end_to_the_driver(make_attempt):
    attempt = make_attempt(["true"], prescript="kill -9 $$").run()
    assert attempt.exit_code == -9
    assert attempt.end is None
    assert attempt.read("job.status") == b"4"


def test_code_of_the_scheduler_comes_before_the_claims(make_attempt):
    attempt = make_attempt(["true"], wrapper_init='[[ -e "$xq_dir/job.start.0" ]] || exit 44').run()
    assert attempt.exit_code == 44
    assert attempt.start_claim is None


# --- what the wrapper finds itself in -------------------------------------------------------------


@pytest.mark.parametrize(
    "environ",
    [
        {"BASH_FUNC_printf%%": "() { echo hijacked; }", "BASH_FUNC_trap%%": "() { exit 9; }"},
        {"SHELLOPTS": "errexit:nounset:noclobber"},
        {"BASHOPTS": "failglob:nocasematch"},
        {"POSIXLY_CORRECT": "1"},
        {"IFS": "job0"},
        {"PATH": "/nowhere"},
        {"CDPATH": "/usr:/"},
        {"TMOUT": "1"},
        {"LC_ALL": "xx_XX.UTF-8"},
        {"xq_native": "a b", "xq_spool": "/nowhere", "xq_tag": "9", "xq_cause": "X", "xq_rc": "9"},
        {"rc": "9", "status": "9", "told": "9", "cmd": "exit 9", "xq_won": "1", "xq_told": "9"},
        {"HOSTNAME": "a b c"},
    ],
    ids=lambda environ: next(iter(environ)),
)
@WAYS
def test_an_inherited_environment_does_not_hijack_the_wrapper(make_attempt, probe, environ, way):
    attempt = make_attempt([*probe, "keep", "37", "1"], spool=True, **way)
    attempt.run(environ={**os.environ, **environ})
    assert attempt.end == (37, 7, "")
    assert attempt.stdout == b"ready\n"
    assert attempt.stderr == b""
    assert attempt.start_claim is not None
    assert [event.status for event in attempt.events] == [4, 7]


def test_a_startup_file_does_not_run(make_attempt, tmp_path):
    (tmp_path / "startup").write_text("exit 9\n")
    attempt = make_attempt(["true"]).run(
        environ={**os.environ, "BASH_ENV": str(tmp_path / "startup")}
    )
    assert attempt.end == (0, 6, "")


@WAYS
def test_the_command_sees_nothing_of_the_wrapper(make_attempt, probe, way):
    attempt = make_attempt([*probe, "show"], spool=True, **way)
    with (attempt.folder / "streams").open("w+b") as streams:
        found = attempt.run(stdin=streams, stdout=streams, stderr=streams).found
    assert found.stdin == b"/dev/null"
    assert found.fds == [0, 1, 2]
    assert found.ignored == []
    assert found.blocked == []
    assert not [name for name in found.env if name.startswith((b"xq_", b"BASH", b"cmd", b"rc"))]


@pytest.mark.parametrize("hook", ["prescript", "postscript", "jobcmd_end"])
def test_a_hooks_programs_see_no_descriptor_of_the_wrapper(make_attempt, probe, hook):
    attempt = make_attempt(["true"], spool=True, **{hook: f"{shlex.join(probe)} show"}).run()
    assert attempt.found.fds == [0, 1, 2]


@pytest.mark.concurrency
def test_once_there_job_status_is_never_empty(make_attempt):
    for _ in range(20):
        attempt = make_attempt(["true"]).start()
        seen = [attempt.until(lambda: attempt.read("job.status"))]  # noqa: B023
        while not attempt.is_over():
            seen.append(attempt.read("job.status"))
        assert set(seen) <= {b"4", b"6"}
        assert attempt.read("job.status") == b"6"


# --- full disks -----------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk that `fill()` fills to the last byte."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    with (folder / "filling").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 512)
        except OSError:
            pass


@pytest.mark.needs("mount", root=True)
@WAYS
@pytest.mark.parametrize("rc", [0, 6])
def test_on_a_full_disk_the_exit_code_is_told_by_exiting_with_it(make_attempt, small_disk, way, rc):
    attempt = make_attempt(["sh", "-c", f"exit {rc}"], metadir=small_disk / "job", **way)
    fill(small_disk)
    attempt.run()
    assert attempt.exit_code == rc
    # Files can be created, but nothing can be said in them: the claims tell by being there.
    assert attempt.read("job.start.0") == attempt.read("job.end.0") == b""
    assert attempt.start_claim is attempt.end is None
    assert not _protocol.revoke_start(attempt.metadir, "0", "too late")
    assert not _protocol.claim_end(attempt.metadir, "0", 1, 7, "")


@pytest.mark.needs("mount", root=True)
def test_also_on_a_full_disk_a_prescript_that_exits_is_no_success(make_attempt, small_disk):
    attempt = make_attempt(["true"], metadir=small_disk / "job", prescript="exit 0")
    fill(small_disk)
    attempt.run()
    assert attempt.exit_code == 1
    assert attempt.read("job.status") == b""


@pytest.mark.needs("mount", root=True)
@WAYS
def test_a_disk_that_fills_up_while_the_job_runs_does_not_change_its_end(
    make_attempt, small_disk, way
):
    command = ["sh", "-c", 'cat /dev/zero >"$0" 2>/dev/null; exit 6', small_disk / "filling"]
    attempt = make_attempt(list(map(str, command)), metadir=small_disk / "job", **way).run()
    assert attempt.exit_code == 6
    assert attempt.read("job.status") == b"7"
    assert attempt.read("job.end.0") == b""


@pytest.mark.needs("mount", root=True)
def test_a_disk_that_turned_read_only_is_a_failure_of_its_own(make_attempt, small_disk):
    attempt = make_attempt(["true"], metadir=small_disk / "job")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    attempt.run()
    assert attempt.exit_code == 122
    assert attempt.read("job.start.0") is None
