"""Arguments, environment and working directory reach the command byte for byte."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import wrapper
from xqute.errors import InvalidJobError

LONGEST = wrapper.MAX_ARGUMENT_BYTES
WAYS = [{}, {"prescript": ":"}, {"timeout_s": 60}, {"jobcmd_prep": "cmd=\"$cmd\"' '"}]

# What shells stumble over, and what they do not.
PIECES = [
    *("", " ", "  ", "\t", "\n", "\r", "'", '"', "''", "\\", "\\\\", "`", "`id`", "$", "$HOME"),
    *("${x:-y}", "$(id)", "$'a'", "$((1))", "!", "!!", "#", "&", "&&", ";", ";;", "|", "<", ">", "("),
    *(")", "{", "}", "{a,b}", "{1..3}", "[", "]", "*", "?", "[a-z]", "~", "~root", "%", "%s", "%n"),
    *("-", "--", "-n", "-e", "=", "a=b", "\\n", "\\001", "\\'", "\x01", "\x7f", "\x1b[0m", "EOF"),
    *("é", "日本語", "\N{PILE OF POO}", "\u00a0", "\u2028", "\udcff", "\udc80", "\udc81\x01"),
    *("\udc81\udc5c".replace("\udc5c", "\\"), "\udc81'", "a", "b c", "0", "x" * 300),
]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.binary(max_size=30).filter(lambda data: b"\0" not in data).map(os.fsdecode),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
# Names that mean something to bash, where it may not matter what they are set to.
SPECIAL_NAMES = """
    BASH BASHPID BASH_ALIASES BASH_ARGV0 BASH_CMDS BASH_COMMAND BASH_COMPAT BASH_ENV BASH_REMATCH
    BASH_EXECUTION_STRING BASH_LOADABLES_PATH BASH_MONOSECONDS BASH_SUBSHELL BASH_TRAPSIG
    BASH_VERSION BASH_XTRACEFD CDPATH CHILD_MAX COLUMNS COMP_CWORD COMP_LINE COMP_WORDBREAKS
    COMP_WORDS COMPREPLY COPROC DIRSTACK EMACS ENV EPOCHREALTIME EPOCHSECONDS FCEDIT FIGNORE FUNCNAME
    FUNCNEST GLOBIGNORE GLOBSORT GROUPS HISTCMD HISTCONTROL HISTFILE HISTFILESIZE HISTIGNORE HISTSIZE
    HISTTIMEFORMAT HOME HOSTFILE HOSTNAME HOSTTYPE IFS IGNOREEOF INPUTRC INSIDE_EMACS LANG LC_ALL
    LC_COLLATE LC_CTYPE LC_MESSAGES LC_NUMERIC LC_TIME LINENO LINES MACHTYPE MAIL MAILCHECK MAILPATH
    MAPFILE OLDPWD OPTARG OPTERR OPTIND OSTYPE POSIXLY_CORRECT PROMPT_COMMAND PROMPT_DIRTRIM PS0 PS1
    PS2 PS3 PS4 PWD RANDOM READLINE_LINE READLINE_POINT REPLY SECONDS SHELL SRANDOM TIMEFORMAT TMOUT
    TMPDIR TZ auto_resume histchars cmd rc status now what told pid children name
""".split()  # noqa: SIM905
NAME = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
        lambda name: not name.startswith("xq_")
        and name not in wrapper._READONLY | wrapper._LOST | {"LD_PRELOAD", "PATH"}
    ),
    st.sampled_from(SPECIAL_NAMES),
)
FOLDER = (
    TEXT.map(lambda text: text.replace("/", "|"))
    .filter(lambda text: text not in {"", ".", ".."})
    .filter(lambda text: len(os.fsencode(text)) <= 255)
)
# Bash itself counts, or notes where it is.
BASHS_OWN = {b"_", b"SHLVL", b"PWD", b"OLDPWD"}


@pytest.mark.timeout(600)
@settings(
    max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    argv=st.lists(TEXT, max_size=6),
    env=st.dictionaries(NAME, TEXT, max_size=4),
    folder=FOLDER,
    way=st.sampled_from(range(len(WAYS))),
    number=st.builds(next, st.just(itertools.count())),
)
@example(
    argv=["echo", 'say "hi"', "$HOME", "`id`", "a\nb", "", "*", "\udcff"],
    env={"IFS": "", "OPTIND": "a b", "RANDOM": "x", "cmd": "exit 9", "LC_ALL": "zh_CN.GB18030"},
    folder="-",
    way=1,
    number=-1,
)
def test_every_byte_arrives(make_attempt_anew, probe, argv, env, folder, way, number):
    attempt = make_attempt_anew(
        [*probe, "show", *argv], env=env, cwd=lambda base: base / folder, **WAYS[way]
    ).run(environ={"PATH": os.environ["PATH"], "HOME": "/", "inherited": "a\nb"})
    assert attempt.end == (0, 6, ""), attempt
    assert attempt.stderr == b""
    found = attempt.found
    assert found.argv == list(map(os.fsencode, argv))
    expected = {os.fsencode(name): os.fsencode(value) for name, value in env.items()}
    assert {name: found.env.get(name) for name in expected} == expected
    inherited = {b"PATH": os.fsencode(os.environ["PATH"]), b"HOME": b"/", b"inherited": b"a\nb"}
    others = {name: value for name, value in found.env.items() if name not in expected}
    assert {name: others[name] for name in others.keys() - BASHS_OWN} == {
        name: value for name, value in inherited.items() if name not in expected
    }
    assert found.cwd == os.fsencode(attempt.cwd)


@pytest.fixture
def make_attempt_anew(make_attempt):
    """`make_attempt` that leaves nothing behind from one example to the next."""
    made = []

    def make(argv, cwd, **kwargs):
        if made:
            shutil.rmtree(made.pop().folder)
        attempt = make_attempt(["true"])
        folder = cwd(attempt.folder)
        folder.mkdir()
        attempt = type(attempt)(attempt.folder, argv, cwd=str(folder), **kwargs)
        attempt.cwd = folder
        made.append(attempt)
        return attempt

    return make


@pytest.mark.parametrize("code", range(1, 256))
def test_every_single_byte_is_quoted(code):
    text = os.fsdecode(bytes([code]))
    word = wrapper.quote(text)
    assert word.isascii()
    assert word.isprintable()
    printed = subprocess.run(
        ["/bin/bash", "-c", f"printf %s {word}"], stdout=subprocess.PIPE, check=True
    )
    assert printed.stdout == bytes([code])
