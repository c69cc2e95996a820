"""`xqute logs`: what a job wrote, and goes on writing."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import click

from .output import write_all
from .runs import find_run, owner_of, read_job

__all__ = ["logs"]

_LOOK_S = 0.1
_CHUNK_BYTES = 65536


class _Tail:
    """Passes on what is appended to a file; one that takes its place is begun anew.

    Args:
        path: The file; it need not be there yet.
        to_fd: Where it goes.
    """

    def __init__(self, path: str, to_fd: int) -> None:
        self._path = path
        self._to_fd = to_fd
        self._fd: int | None = None

    def pass_on(self) -> None:
        """Pass on what is there by now.

        Raises:
            OSError: If the file cannot be read, or the output cannot be written.
        """
        self._read()
        if self._is_replaced():
            self.close()
            with suppress(FileNotFoundError):
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            self._read()

    def _is_replaced(self) -> bool:
        if self._fd is None:
            return True
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) != (here.st_dev, here.st_ino)

    def _read(self) -> None:
        if self._fd is not None:
            while chunk := os.read(self._fd, _CHUNK_BYTES):
                write_all(self._to_fd, chunk)

    def close(self) -> None:
        """Leave the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@click.command()
@click.argument("index", type=click.IntRange(min=0))
@click.argument("workdir", required=False, metavar="[RUN]")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job has ended.")
def logs(index: int, workdir: str | None, follow: bool) -> int:
    """Print the output of job INDEX, its stderr on stderr.

    Of the latest run of this folder, or RUN, a workdir or its name. Where a job was tried several
    times, this is the last try; the others are in <workdir>/INDEX/job.retry/.
    """
    run_dir = find_run(workdir)
    folder = f"{run_dir}/{index}"
    if not os.path.isdir(folder):
        raise click.UsageError(f"There is no job {index} in {run_dir}")
    tails = [_Tail(f"{folder}/job.stdout", 1), _Tail(f"{folder}/job.stderr", 2)]
    while True:
        # Asked first, so that what is passed on after it is all there is.
        goes_on = follow and _goes_on(run_dir, index)
        for tail in tails:
            tail.pass_on()
        if not goes_on:
            return 0
        time.sleep(_LOOK_S)


def _goes_on(run_dir: str, index: int) -> bool:
    """Whether a job may still write: it runs, or somebody may yet begin it."""
    # Asked first: whoever is gone by then has begun what was to be begun.
    at_work = owner_of(run_dir) is not None or os.path.exists(f"{run_dir}/{index}/job.jid")
    state = read_job(run_dir, index).state
    return state == "running" or (state == "waiting" and at_work)
