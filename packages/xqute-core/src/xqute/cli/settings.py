"""The settings of a run: what the options of `xqute run` come to."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import click

from ..defaults import JobErrorStrategy
from ..errors import InvalidJobError
from ..wrapper import check_env
from .runs import find_run

__all__ = ["Settings", "make_settings"]

#: What a scheduler is given by options of their own.
_OWN_OPTIONS = {
    "cwd": "--cwd",
    "error_strategy": "--retries or --halt",
    "forks": "--forks",
    "jobname_prefix": "--name",
    "num_retries": "--retries",
    "postscript": "--postscript",
    "prescript": "--prescript",
    "timeout": "--timeout",
    "workdir": "--workdir",
}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]*[1-9])?")


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do; the options of `xqute run` under their own names.

    Attributes:
        workdir: None: a folder of its own below `.xqute/runs`.
        resume: Whether what has succeeded there already is not run again.
        retries: None: what fails is not tried again.
        output: What of the jobs' output is passed on: "stdout", "both" or "none".
    """

    scheduler: str = "local"
    forks: int = 1
    workdir: str | None = None
    resume: bool = False
    on_change: str = "error"
    retries: int | None = None
    halt: bool = False
    timeout: float = 0
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    opt: Mapping[str, Any] = field(default_factory=dict)
    plugin: tuple[str, ...] = ()
    prescript: str = ""
    postscript: str = ""
    name: str | None = None
    json: bool = False
    output: str = "stdout"
    keep_order: bool = False
    quiet: bool = False

    @property
    def error_strategy(self) -> JobErrorStrategy:
        """What a failure leads to. With both, halting is the run's and retrying each job's."""
        if self.halt:
            return JobErrorStrategy.HALT
        return JobErrorStrategy.IGNORE if self.retries is None else JobErrorStrategy.RETRY

    @property
    def scheduler_opts(self) -> dict[str, Any]:
        """The keywords of the scheduler: those that were set."""
        named = {
            name: getattr(self, name) for name in ("timeout", "cwd", "prescript", "postscript")
        }
        return {name: value for name, value in named.items() if value} | dict(self.opt)


def make_settings(options: dict[str, Any]) -> Settings:
    """Check the options, and give them as settings.

    Raises:
        click.UsageError: If one makes no sense.
        WorkdirError: If there is no run to resume.
    """
    env = dict(options["env"])
    for name, value in env.items():
        try:
            check_env(name, value)
        except InvalidJobError as exc:
            raise click.UsageError(str(exc)) from exc
    opt: dict[str, Any] = {}
    for name, text in options["opt"]:
        if name in _OWN_OPTIONS:
            raise click.UsageError(f"--opt {name}: use {_OWN_OPTIONS[name]}")
        value = _as_value(text)
        if name in opt:
            before = opt[name]
            value = [*before, value] if isinstance(before, list) else [before, value]
        opt[name] = value
    if options["workdir"] == "":
        raise click.UsageError("--workdir is empty")
    cwd = options["cwd"]
    if cwd is not None and options["scheduler"] == "local":
        if not os.path.isdir(cwd):
            raise click.UsageError(f"--cwd {cwd}: there is no such folder")
        cwd = os.path.abspath(cwd)
    output = "none" if options["no_output"] else options["output"]
    same = ("scheduler", "workdir", "retries", "halt", "timeout", "prescript", "postscript")
    more = ("name", "json", "keep_order", "quiet", "resume", "on_change")
    settings = {name: options[name] for name in (*same, *more)}
    if options["resume"] and options["workdir"] is None:
        settings["workdir"] = find_run(None)
    return Settings(
        **settings,
        forks=options["forks"] or _n_cpus(),
        cwd=cwd,
        env=env,
        opt=opt,
        plugin=options["plugin"],
        output=output,
    )


def _as_value(text: str) -> Any:
    """Give a number or a truth value for what reads, and would be written, exactly like one."""
    if text in ("true", "false"):
        return text == "true"
    found = _NUMBER.fullmatch(text)
    if found is None or text == "-0":
        return text
    return float(text) if found[2] else int(text)


def _n_cpus() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1
