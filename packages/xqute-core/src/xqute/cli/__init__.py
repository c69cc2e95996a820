"""The command line: `xqute`, its exit codes, and how errors are told."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ..errors import SchedulerError, XquteError
from .doctor import doctor
from .logs import logs
from .report import EXIT_BACKEND, EXIT_BROKEN_PIPE, EXIT_USAGE
from .run import run
from .schedulers import schedulers
from .status import status
from .unlock import unlock
from .words import describe_error

__all__ = ["main"]

_EXIT_INTERRUPTED = 130


class _Group(click.Group):
    """Knows what click takes for a failure: that the reader of the output had enough."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered would make Python complain at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return EXIT_BROKEN_PIPE


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="xqute-core", prog_name="xqute", message="%(prog)s %(version)s")
def _xqute() -> None:
    """Run commands as jobs: thousands of them, and know what happened to every one."""


for _command in (run, status, logs, unlock, schedulers, doctor):
    _xqute.add_command(_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit.

    Args:
        args: What follows the program's name; None: as it was called.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # paths that are no text are told as they are
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.exit(_run(args))


def _run(args: Sequence[str] | None) -> int:
    """Run the command line and give the exit code; what goes wrong is told in one line."""
    try:
        return int(_xqute.main(args, prog_name="xqute", standalone_mode=False) or 0)
    except click.ClickException as exc:
        exc.show()
        return EXIT_USAGE
    except (XquteError, OSError) as exc:
        click.echo(f"Error: {describe_error(exc)}", err=True)
        at_backend = isinstance(exc, SchedulerError) and not isinstance(exc, LookupError)
        return EXIT_BACKEND if at_backend else EXIT_USAGE
    except (click.Abort, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001  # an error of ours must not look like a job that failed
        traceback.print_exc()
        return EXIT_BACKEND
