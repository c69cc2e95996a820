"""`xqute doctor`: whether jobs can run here, found out by trying."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple

import click

from .. import _files
from ..defaults import JOBCMD_WRAPPER_LANG, JobOutcome
from ..schedulers import installed_schedulers
from ..xqute import run as run_jobs
from .report import EXIT_FAILED
from .schedulers import why_unusable
from .template import run_bash

__all__ = ["doctor"]

_OLDEST_BASH = (4, 2)


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        state: "ok"; "note": it works, in another way; "bad": jobs will not run as they should.
        words: What was found, and what to do about it.
    """

    state: str
    words: str


@click.command()
@click.option("--workdir", default=".", metavar="DIR", help="Where jobs are to keep their files.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each finding.")
def doctor(workdir: str, as_json: bool) -> int:
    """Check that jobs can run here. Exits 1 if something is bad."""
    is_bad = False
    for name, finding in _examine(workdir):
        is_bad = is_bad or finding.state == "bad"
        if as_json:
            click.echo(json.dumps({"name": name, **finding._asdict()}))
        else:
            click.echo(f"{finding.state:<5} {name:<20} {finding.words}")
    return EXIT_FAILED if is_bad else 0


def _examine(workdir: str) -> Iterator[tuple[str, Finding]]:
    """Look at everything; a look that fails is bad, and the others are taken all the same."""
    looks: dict[str, Callable[[], Finding]] = {
        "python": lambda: Finding("ok", f"{platform.python_version()}, {sys.executable}"),
        "xqute": _look_at_distributions,
        "bash": _look_at_bash,
        "process exits": _look_at_pidfd,
        "file events": _look_at_inotify,
        "workdir": lambda: _look_at_workdir(workdir),
        "a job": lambda: _run_a_job(workdir),
    }
    for name in sorted(installed_schedulers()):
        looks[f"scheduler {name}"] = lambda name=name: _judge(why_unusable(name))  # type: ignore[misc]
    for plugin in entry_points(group="xqute"):
        looks[f"plugin {plugin.name}"] = lambda plugin=plugin: Finding("ok", str(plugin.load()))  # type: ignore[misc]
    for name, look in looks.items():
        try:
            finding = look()
        except Exception as exc:  # noqa: BLE001  # whatever it is, it is the finding
            finding = Finding("bad", f"{type(exc).__name__}: {exc}")
        yield name, finding


def _judge(trouble: str | None) -> Finding:
    return Finding("ok", "can be loaded") if trouble is None else Finding("bad", trouble)


def _look_at_distributions() -> Finding:
    ours = f"xqute-core {version('xqute-core')}"
    try:
        other = version("xqute")
    except PackageNotFoundError:
        return Finding("ok", ours)
    return Finding(
        "bad",
        f"{ours} and the distribution xqute {other} are both installed and overwrite each other's "
        "files: pip uninstall xqute xqute-core, then pip install xqute-core",
    )


def _look_at_bash() -> Finding:
    done = run_bash('echo "${BASH_VERSINFO[0]}.${BASH_VERSINFO[1]} $BASH_VERSION"')
    numbers, _, words = done.stdout.strip().partition(" ")
    if tuple(map(int, numbers.split("."))) < _OLDEST_BASH:
        oldest = ".".join(map(str, _OLDEST_BASH))
        return Finding("bad", f"{JOBCMD_WRAPPER_LANG} is {words}; jobs need {oldest} or later")
    return Finding("ok", f"{words}, {JOBCMD_WRAPPER_LANG}")


def _look_at_pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError) as exc:
        return Finding("note", f"no pidfd ({exc}): processes are looked at every 20 ms instead")
    return Finding("ok", "told at once, by pidfd")


def _look_at_inotify() -> Finding:
    try:
        fd = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    except AttributeError:
        return Finding("note", "no inotify: folders are listed every second instead")
    if fd < 0:
        why = os.strerror(ctypes.get_errno())
        return Finding("note", f"no inotify ({why}): folders are listed every second instead")
    os.close(fd)
    return Finding("ok", "told at once, by inotify")


def _look_at_workdir(workdir: str) -> Finding:
    if not os.path.isdir(workdir):
        _files.make_dir(workdir)
    _files.check_way(workdir)
    with tempfile.TemporaryDirectory(prefix=".xqute-doctor-", dir=workdir) as folder:
        path = f"{folder}/claim"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(path, flags, 0o600)
        try:
            os.write(fd, b"x")
            locks = _locks(fd)
        finally:
            os.close(fd)
        try:
            os.close(os.open(path, flags, 0o600))
        except FileExistsError:
            return Finding(
                "ok", f"{os.path.abspath(workdir)}: writable, exclusive creation, {locks}"
            )
        return Finding("bad", "two could create one file exclusively: a job might be started twice")


def _locks(fd: int) -> str:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        return f"no locks ({exc.strerror}): a run on another host counts as dead after a minute"
    return "locks"


def _run_a_job(workdir: str) -> Finding:
    with tempfile.TemporaryDirectory(prefix=".xqute-doctor-", dir=workdir) as folder:
        began_s = time.perf_counter()
        (job,) = run_jobs([["true"]], workdir=folder)
        took_ms = (time.perf_counter() - began_s) * 1000
        if job.outcome is not JobOutcome.SUCCEEDED:
            return Finding("bad", f"`true` {job.outcome}: {job.reason}")
        return Finding("ok", f"`true` succeeded, {took_ms:.0f} ms with everything around it")
