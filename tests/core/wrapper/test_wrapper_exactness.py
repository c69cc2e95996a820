"""Arguments, environment and working directory reach the command byte for byte."""

from __future__ import annotations

import os
import subprocess
import tempfile

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import wrapper

WAYS = [{}, {"prescript": ":"}, {"timeout_s": 60}, {"jobcmd_prep": "cmd=\"$cmd\"' '"}]

# What shells stumble over, and what they do not.
PIECES = [
    *("", " ", "  ", "\t", "\n", "\r", "'", '"', "''", "\\", "\\\\", "`", "`id`", "$", "$HOME"),
    *(
        "${x:-y}",
        "$(id)",
        "$'a'",
        "$((1))",
        "!",
        "!!",
        "#",
        "&",
        "&&",
        ";",
        ";;",
        "|",
        "<",
        ">",
        "(",
    ),
    *(")", "{", "}", "{a,b}", "{1..3}", "[", "]", "*", "?", "[a-z]", "~", "~root", "%", "%s", "%n"),
    *("-", "--", "-n", "-e", "=", "a=b", "\\n", "\\001", "\\'", "\x01", "\x7f", "\x1b[0m", "EOF"),
    *("é", "日本語", "\N{PILE OF POO}", "\u00a0", "\u2028", "\udcff", "\udc80", "\udc81\x01"),
    *("\udc81\\", "\udc81'", "a", "b c", "0", "x" * 300),
]
TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=6).map("".join),
    st.binary(max_size=30).filter(lambda data: b"\0" not in data).map(os.fsdecode),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
# Names that mean something to bash, where it may not matter what they are set to.
SPECIAL_NAMES = [
    *(
        "BASH",
        "BASHPID",
        "BASH_ALIASES",
        "BASH_ARGV0",
        "BASH_CMDS",
    ),
    *(
        "BASH_COMMAND",
        "BASH_COMPAT",
        "BASH_ENV",
        "BASH_REMATCH",
        "BASH_EXECUTION_STRING",
    ),
    *(
        "BASH_LOADABLES_PATH",
        "BASH_MONOSECONDS",
        "BASH_SUBSHELL",
        "BASH_TRAPSIG",
        "BASH_VERSION",
    ),
    *(
        "BASH_XTRACEFD",
        "CDPATH",
        "CHILD_MAX",
        "COLUMNS",
        "COMP_CWORD",
    ),
    *(
        "COMP_LINE",
        "COMP_WORDBREAKS",
        "COMP_WORDS",
        "COMPREPLY",
        "COPROC",
    ),
    *(
        "DIRSTACK",
        "EMACS",
        "ENV",
        "EPOCHREALTIME",
        "EPOCHSECONDS",
    ),
    *(
        "FCEDIT",
        "FIGNORE",
        "FUNCNAME",
        "GLOBIGNORE",
    ),
    *(
        "GLOBSORT",
        "GROUPS",
        "HISTCMD",
        "HISTCONTROL",
        "HISTFILE",
    ),
    *(
        "HISTFILESIZE",
        "HISTIGNORE",
        "HISTSIZE",
        "HISTTIMEFORMAT",
        "HOME",
    ),
    *(
        "HOSTFILE",
        "HOSTNAME",
        "HOSTTYPE",
        "IFS",
        "IGNOREEOF",
    ),
    *(
        "INPUTRC",
        "INSIDE_EMACS",
        "LANG",
        "LC_ALL",
        "LC_COLLATE",
    ),
    *(
        "LC_CTYPE",
        "LC_MESSAGES",
        "LC_NUMERIC",
        "LC_TIME",
        "LINENO",
    ),
    *(
        "LINES",
        "MACHTYPE",
        "MAIL",
        "MAILCHECK",
        "MAILPATH",
    ),
    *(
        "MAPFILE",
        "OLDPWD",
        "OPTARG",
        "OPTERR",
        "OPTIND",
    ),
    *(
        "OSTYPE",
        "POSIXLY_CORRECT",
        "PROMPT_COMMAND",
        "PROMPT_DIRTRIM",
        "PS0",
    ),
    *(
        "PS1",
        "PS2",
        "PS3",
        "PS4",
        "PWD",
    ),
    *(
        "RANDOM",
        "READLINE_LINE",
        "READLINE_POINT",
        "REPLY",
        "SECONDS",
    ),
    *(
        "SHELL",
        "SHLVL",
        "SRANDOM",
        "TIMEFORMAT",
        "TMOUT",
        "TMPDIR",
    ),
    *(
        "TZ",
        "auto_resume",
        "histchars",
        "cmd",
        "rc",
    ),
    *(
        "status",
        "now",
        "what",
        "told",
        "pid",
    ),
    *(
        "children",
        "name",
    ),
]
NAME = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(
        lambda name: (
            not name.startswith("xq_")
            and name not in wrapper._READONLY | wrapper._LOST | {"LD_PRELOAD", "PATH"}
        )
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
    way=st.sampled_from(WAYS),
)
@example(
    argv=["echo", 'say "hi"', "$HOME", "`id`", "a\nb", "", "*", "\udcff"],
    env={"IFS": "", "OPTIND": "a b", "RANDOM": "x", "cmd": "exit 9", "LC_ALL": "zh_CN.GB18030"},
    folder="-",
    way=WAYS[1],
)
def test_every_byte_arrives(make_attempt, tmp_path, probe, argv, env, folder, way):
    cwd = tempfile.mkdtemp(dir=tmp_path) + f"/{folder}"
    os.mkdir(cwd)
    attempt = make_attempt([*probe, "show", *argv], env=env, cwd=cwd, **way)
    inherited = {"PATH": os.environ["PATH"], "HOME": "/", "inherited": "a\nb"}
    attempt.run(environ=inherited).close()
    assert attempt.end == (0, 6, ""), attempt
    assert attempt.stderr == b""
    found = attempt.found
    assert found.argv == list(map(os.fsencode, argv))
    assert found.cwd == os.fsencode(cwd)
    expected = {os.fsencode(n): os.fsencode(v) for n, v in {**inherited, **env}.items()}
    for name in BASHS_OWN - set(map(os.fsencode, env)):
        found.env.pop(name, None)
    assert found.env == expected


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


@pytest.fixture(scope="session")
def locale_folder(tmp_path_factory):
    """Locales in which bytes of ASCII can be the second half of a character."""
    folder = tmp_path_factory.mktemp("locales")
    for name, language, charmap in [
        ("zh_CN.GB18030", "zh_CN", "GB18030"),
        ("zh_CN.GBK", "zh_CN", "GBK"),
        ("ja_JP.SJIS", "ja_JP", "SHIFT_JIS"),
        ("de_DE.UTF-8", "de_DE", "UTF-8"),
    ]:
        # A warning that it is not a superset of ASCII is exit code 1.
        argv = ["localedef", "-i", language, "-f", charmap, folder / name]
        made = subprocess.run(argv, check=False, capture_output=True)
        assert (folder / name).is_dir(), made.stderr
    return folder


@pytest.mark.needs("localedef", "locale-gen")
@pytest.mark.parametrize(
    "way", [{}, {"timeout_s": 60.5}, {"prescript": "echo '\udc81'\\''\udc81|' >&2"}]
)
@pytest.mark.parametrize(
    "locale", ["C", "C.UTF-8", "zh_CN.GB18030", "zh_CN.GBK", "ja_JP.SJIS", "de_DE.UTF-8"]
)
def test_every_byte_arrives_in_every_locale(make_attempt, probe, locale_folder, locale, way):
    argv = [
        os.fsdecode(bytes([lead, code])) for lead in (0x81, 0xE3, 0xFE) for code in range(1, 256)
    ]
    attempt = make_attempt([*probe, "show", *argv], spool=True, env={"LC_ALL": locale}, **way)
    attempt.run(environ={**os.environ, "LC_ALL": locale, "LOCPATH": str(locale_folder)})
    assert attempt.end == (0, 6, "")
    assert attempt.found.argv == list(map(os.fsencode, argv))
    assert attempt.stderr == (b"\x81'\x81|\n" if "prescript" in way else b"")
    assert len(attempt.events) == 2


@pytest.mark.parametrize("way", WAYS)
def test_the_longest_argument_and_variable_arrive(make_attempt, probe, way):
    longest = "x" * wrapper.MAX_ARGUMENT_BYTES
    variable = "y" * (wrapper.MAX_ARGUMENT_BYTES - len("LONG="))
    wrapper.check_command([*probe, "show", longest])
    wrapper.check_env("LONG", variable)
    attempt = make_attempt([*probe, "show", longest], env={"LONG": variable}, **way).run()
    assert attempt.end == (0, 6, "")
    assert attempt.found.argv == [longest.encode()]
    assert attempt.found.env[b"LONG"] == variable.encode()


def test_a_longer_argument_would_not(make_attempt, probe):
    attempt = make_attempt([*probe, "show", "x" * (wrapper.MAX_ARGUMENT_BYTES + 1)]).run()
    assert attempt.end == (126, 7, "")
    assert b"Argument list too long" in attempt.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a b", "-x", "a'b", "*", "$x", "a\nb", "x=1", "\udcff", "~"])
def test_the_commands_name_may_be_anything(make_attempt, probe, tmp_path, name, way):
    (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / name).chmod(0o700)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    attempt = make_attempt([name, "a b"], **way).run(environ=environ)
    assert attempt.end == (0, 6, "")
    assert attempt.stdout == b"a b\n"


def test_a_relative_working_directory_is_one_below_where_the_wrapper_starts(make_attempt, tmp_path):
    for name in ("-", "a b", "usr"):
        (tmp_path / name).mkdir()
        environ = {**os.environ, "CDPATH": "/", "OLDPWD": "/"}
        attempt = make_attempt(["pwd"], cwd=name).run(cwd=tmp_path, environ=environ)
        assert attempt.stdout == f"{tmp_path}/{name}\n".encode()


def test_the_jobs_folder_may_have_any_name(make_attempt, tmp_path):
    for name in ("a b", "$x", "it's", "a\nxq_spool=b", "\udcff", "xq_timeout_s=1"):
        for spool in (False, True):
            folder = tmp_path / f"{name}{spool}"
            attempt = make_attempt(["true"], metadir=folder, spool=spool).run()
            assert attempt.end == (0, 6, "")
            assert len(attempt.events) == 2 * spool
            assert ("xq_tell" in attempt.text) == spool
