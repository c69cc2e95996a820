"""The bash script around one attempt of one job: its text, rendered from `wrapper.sh`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from .errors import InvalidJobError

__all__ = [
    "PLAIN",
    "build_environment",
    "build_parameters",
    "check_command",
    "check_env",
    "quote",
    "quote_command",
    "render",
]

# The line of a script that runs no code of a user's but the command. Such a one may as well be
# sourced by a shell that runs others, too.
PLAIN: Final = "\nxq_plain=1\n"
# The longest argument, or `NAME=value`, that exec takes: 32 pages, less the NUL at its end.
MAX_ARGUMENT_BYTES: Final = 131_071

# What is longer, infinity for one, is no time to bash.
_LONGEST_S: Final = 1e9

# Sections of code by hooks and users; with one of them the command has a shell around it.
_HOOKS_BEFORE: Final = frozenset(("jobcmd_init", "prescript", "jobcmd_prep"))
_HOOKS: Final = _HOOKS_BEFORE | {"postscript", "jobcmd_end"}
_SECTIONS: Final = _HOOKS | {
    *("shebang", "wrapper_init", "parameters", "environment", "cwd", "cmd"),
}

# A command of such a name is the shell's own and needs no exec (bash 4.2 to 5.3).
_BUILTIN_WORDS: Final = frozenset(
    f"'{name}'"
    for name in (
        *(".", ":", "[", "alias", "bg", "bind", "break", "builtin", "caller", "cd", "command"),
        *("compgen", "complete", "compopt", "continue", "declare", "dirs", "disown", "echo"),
        *("enable", "eval", "exec", "exit", "export", "false", "fc", "fg", "getopts", "hash"),
        *("help", "history", "jobs", "kill", "let", "local", "logout", "mapfile", "popd", "printf"),
        *("pushd", "pwd", "read", "readarray", "readonly", "return", "set", "shift", "shopt"),
        *("source", "suspend", "test", "times", "trap", "true", "type", "typeset", "ulimit"),
        *("umask", "unalias", "unset", "wait"),
    )
)

_ENV_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
# Bash refuses to change these.
_READONLY: Final = frozenset(("UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO"))
# And these it computes itself, whatever is exported; FUNCNEST would end the wrapper's functions.
_LOST: Final = frozenset(
    ("_", "BASH_ARGC", "BASH_ARGV", "BASH_LINENO", "BASH_SOURCE", "FUNCNEST", "PIPESTATUS")
)
# These too, until they are unset.
_DYNAMIC: Final = frozenset(
    [
        *("BASHPID", "BASH_ALIASES", "BASH_ARGV0", "BASH_CMDS", "BASH_COMMAND", "BASH_MONOSECONDS"),
        *("BASH_SUBSHELL", "DIRSTACK", "EPOCHREALTIME", "EPOCHSECONDS", "FUNCNAME", "GROUPS"),
        *("HISTCMD", "LINENO", "OPTIND", "RANDOM", "SECONDS", "SRANDOM"),
    ]
)

_NEEDS_OCTAL: Final = rb"[^ -&(-\[\]-~]"
_CODE_NEEDS_OCTAL: Final = rb"[^\t\n -&(-\[\]-~]"


def quote(text: str) -> str:
    """One bash word that stands for exactly these bytes, itself printable ASCII.

    Surrogates are bytes, as `os.fsdecode` makes them. ValueError: a NUL, or a surrogate that is no
    byte.
    """
    if text.isascii() and text.isprintable() and "'" not in text:
        return f"'{text}'"
    return f"$'{re.sub(_NEEDS_OCTAL, _octal, _encode(text)).decode()}'"


def quote_command(argv: Sequence[str]) -> str:
    """The command as bash reads it. Every word is quoted, so none is an alias, keyword or glob."""
    return " ".join(map(quote, argv))


def check_command(argv: Sequence[str]) -> None:
    """Raise InvalidJobError for a command that no process can be started with."""
    if not argv:
        raise InvalidJobError("The command is empty.")
    if not argv[0]:
        raise InvalidJobError("The command's name is an empty string.")
    for position, argument in enumerate(argv):
        # Four bytes are the most that one character takes.
        if "\0" in argument or not argument.isascii() or len(argument) > MAX_ARGUMENT_BYTES:
            _check_bytes(argument, f"Argument {position} of the command")


def check_env(name: str, value: str) -> None:
    """Raise InvalidJobError for a variable that bash cannot hand over exactly as it is."""
    if not re.fullmatch(_ENV_NAME, name):
        raise InvalidJobError(
            f"Environment variable {name!r}: a name is made of ASCII letters, digits and '_', "
            "and does not begin with a digit."
        )
    if name in _READONLY:
        raise InvalidJobError(f"Environment variable {name}: readonly in bash.")
    if name in _LOST:
        raise InvalidJobError(f"Environment variable {name}: bash keeps it for itself.")
    if name.startswith("xq_"):
        raise InvalidJobError(f"Environment variable {name}: names with xq_ are the wrapper's own.")
    _check_bytes(f"{name}={value}", f"Environment variable {name}")


def build_parameters(
    *,
    index: int,
    attempt: int,
    directory: str,
    tag: str = "",
    spool: str = "",
    timeout_s: float = 0,
    grace_s: float = 10,
    restart: str = "0",
    native_id: str = "''",
    restarts: bool = False,
    own_pids: bool = False,
    upload_s: float = 0,
) -> str:
    """The section `parameters`.

    Args:
        index: the job's.
        attempt: the job's `trial_count`.
        directory: the job's folder, absolute, as seen from where it runs.
        tag: what the claims of this attempt are named after; default: `attempt`.
        spool: the folder for event names, as seen from there; empty: none is wanted.
        timeout_s: seconds from the start claim to TERM; 0: no limit, or not the wrapper's business.
        grace_s: seconds between TERM and KILL.
        restart: a bash word that gives the number of the backend's own restart.
        native_id: a bash word that gives the backend's id of this job.
        restarts: whether the backend may start this attempt again by itself.
        own_pids: whether jobs have other process ids than their host.
        upload_s: where `directory` is in a mount of a bucket, the seconds between two uploads of
            the outputs of a running job; 0: it is not. Needs a `tag` with a "-" before its last
            part.
    """
    run = tag.rpartition("-")[0]
    tag = quote(tag) if tag else str(attempt)
    text = f"xq_tag={tag}\nxq_native={native_id}\n"
    if upload_s:
        text += f"xq_mount={quote(directory)}\nxq_upload_s={upload_s:.3f}\nxq_run={quote(run)}\n"
    else:
        text = f"xq_dir={quote(directory)}\n{text}"
    if spool:
        text += (
            f"xq_spool={quote(spool)}\n"
            f"xq_index={index}\nxq_attempt={attempt}\nxq_restart={restart}\n"
        )
    if timeout_s:
        text += f"xq_timeout_s={_seconds(timeout_s)}\nxq_grace_s={_seconds(grace_s)}\n"
    if restarts:
        text += "xq_restarts=1\n"
    if own_pids:
        text += "xq_pid=0\n"
    return text


def _seconds(seconds: float) -> str:
    """A time as bash's `read -t` takes it."""
    return f"{min(seconds, _LONGEST_S):.3f}"


def build_environment(envs: Mapping[str, str]) -> str:
    """The section `environment`; its names and values have passed `check_env`."""
    if not envs:
        return ""
    words = " ".join([f"{name}={quote(value)}" for name, value in envs.items()])
    # A locale that is not installed makes bash complain where the command's stderr is.
    text = f"export {words} 2>/dev/null\n"
    if dynamic := _DYNAMIC.intersection(envs):
        text = f"unset -v {' '.join(sorted(dynamic))}\n{text}"
    return text


def render(sections: Mapping[str, str]) -> str:
    """The whole script.

    Args:
        sections: by name; one that is missing or empty leaves nothing behind.
            shebang: the first lines, verbatim; default `#!/bin/bash -p`.
            wrapper_init: code of the scheduler, before anything else happens.
            parameters, environment: as built here.
            cwd: the path of the working directory.
            cmd: the command, as `quote_command` gives it.
            jobcmd_init, prescript, jobcmd_prep, postscript, jobcmd_end: bash code.

    Raises:
        ValueError: there is no section of such a name, or none of `parameters` or `cmd`.
    """
    if not sections.keys() <= _SECTIONS:
        raise ValueError(f"No such sections: {', '.join(sorted(sections.keys() - _SECTIONS))}")
    parameters, command = sections.get("parameters"), sections.get("cmd")
    if not parameters or not command:
        raise ValueError("A script needs the sections 'parameters' and 'cmd'.")
    hooked = any(map(sections.get, _HOOKS))
    texts = {"shebang": "#!/bin/bash -p", **{name: text for name, text in sections.items() if text}}
    name = _first_word(command)
    execute = "" if name in _BUILTIN_WORDS else "exec -- "
    if hooked:
        # The backslash: nobody's alias.
        execute = execute and rf"\builtin {execute}"
        texts["cmd"] = f"cmd={_quote_code(command)} xq_exec='{execute}' xq_name={name}"
        for hook in _HOOKS & texts.keys():
            texts[hook] = _render_code(texts[hook], must_be_whole=hook in _HOOKS_BEFORE)
    else:
        texts["run"] = f"{execute}{command}"
    if cwd := sections.get("cwd"):
        texts["cwd"] = f"if cd {quote(cwd if cwd.startswith('/') else f'./{cwd}')} 2>&3; then"
    plan = _plan(
        spool="\nxq_spool=" in parameters,
        timeout="\nxq_timeout_s=" in parameters,
        restarts="\nxq_restarts=" in parameters,
        pids="\nxq_pid=" not in parameters,
        mount="\nxq_mount=" in parameters,
        hooked=hooked,
        cwd=bool(cwd),
    )
    lines = {name: f"{text}\n" for name, text in texts.items()}
    return "".join([lines.get(text, "") if is_place else text for text, is_place in plan])


class _Piece(NamedTuple):
    text: str  # to be copied, or the name of a place
    is_place: bool


@cache
def _plan(
    *, spool: bool, timeout: bool, restarts: bool, pids: bool, mount: bool, hooked: bool, cwd: bool
) -> tuple[_Piece, ...]:
    """The template with only these blocks, without comments, as text between places."""
    wanted = {
        "spool": spool,
        "timeout": timeout,
        "restarts": restarts,
        "once": not restarts,
        "pids": pids,
        "hooked": hooked,
        "cwd": cwd,
        "plain": not hooked,
        "direct": not timeout,
        "mount": mount,
        "here": not mount,
    }
    template = resources.files(__package__).joinpath("wrapper.sh").read_text("ascii")
    pieces = [_Piece("shebang", is_place=True)]
    copied: list[str] = []
    blocks: list[str] = []
    place = ""
    for line in map(str.strip, template.splitlines()[1:]):
        if line.startswith("#?"):
            name = line[2:].strip()
            blocks = [*blocks, name] if name else blocks[:-1]
        elif not all(map(wanted.__getitem__, blocks)):
            pass
        elif line.startswith("#@"):
            place = line[2:].strip()
            if place:
                pieces += (_Piece("".join(copied), is_place=False), _Piece(place, is_place=True))
                copied = []
        elif line and not place and not line.startswith("#"):
            copied.append(f"{line}\n")
    return (*pieces, _Piece("".join(copied), is_place=False))


def _quote_code(code: str) -> str:
    """One bash word that stands for this code, with its lines kept, itself ASCII."""
    if code.isascii() and code.replace("\n", "").replace("\t", "").isprintable():
        return "'" + code.replace("'", "'\\''") + "'"
    return f"$'{re.sub(_CODE_NEEDS_OCTAL, _octal, _encode(code)).decode()}'"


def _render_code(code: str, *, must_be_whole: bool) -> str:
    """Evaluate the code where it cannot break what is around it.

    A syntax error ends an eval, and nothing else. So code that must be whole shows, in a line of
    its own below whatever its last line is, that it got to its end.
    """
    if not must_be_whole:
        return f"eval {_quote_code(code)}"
    whole = _quote_code(f"{code}\n\nxq_whole=1")
    return f"xq_whole=''; eval {whole}\n[[ $xq_whole ]] || exit 2"


def _first_word(command: str) -> str:
    """The first word of a quoted command, quoted."""
    return command[: command.index("'", command.index("'") + 1) + 1]


def _octal(match: re.Match[bytes]) -> bytes:
    return b"\\%03o" % match[0][0]


def _encode(text: str) -> bytes:
    if "\0" in text:
        raise ValueError("a NUL cannot be passed to a program")
    return os.fsencode(text)


def _check_bytes(text: str, what: str) -> None:
    try:
        size = len(_encode(text))
    except UnicodeEncodeError as exc:
        raise InvalidJobError(f"{what} holds {text[exc.start]!r}, which is no byte.") from exc
    except ValueError as exc:
        raise InvalidJobError(f"{what} holds a NUL.") from exc
    if size > MAX_ARGUMENT_BYTES:
        raise InvalidJobError(
            f"{what} is {size} bytes long; the system takes {MAX_ARGUMENT_BYTES} at the most."
        )
