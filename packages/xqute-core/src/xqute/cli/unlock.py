"""`xqute unlock`: frees the workdir of a run that is gone."""

from __future__ import annotations

import time

import click

from .._ownership import BEAT_S, Holder, Ownership, find_holder
from ..errors import WorkdirLockedError
from .runs import find_run

__all__ = ["unlock"]

_LOOK_S = 0.1


@click.command()
@click.argument("workdir", required=False, metavar="[RUN]")
@click.option("--force", is_flag=True, help="Free it even if its owner is alive.")
def unlock(workdir: str | None, force: bool) -> int:
    """Free the workdir of a run that is gone: the latest of this folder, or RUN.

    A run that has died on this machine locks nobody out. One on another machine does for a minute:
    its owner is watched for a few seconds, and if it leaves no sign of life the workdir is freed.
    One whose owner is alive is only freed by --force: that run then ends, and its jobs run on.
    """
    run_dir = find_run(workdir)
    folder = f"{run_dir}/.run/owner"
    holder = find_holder(folder)
    if holder is None:
        click.echo(f"{run_dir} is not locked")
        return 0
    try:
        ownership = Ownership.take(folder)
        state = "which is gone"
    except WorkdirLockedError as exc:
        if force:
            state = "which may be alive"
        elif _is_elsewhere(holder) and not _is_beating(folder, holder):
            state = "which gives no sign of life"
        else:
            raise WorkdirLockedError(f"{exc}; --force frees the workdir all the same") from exc
        ownership = Ownership.take(folder, force=True)
    ownership.release()
    click.echo(f"{run_dir} is free; its owner was {holder}, {state}")
    return 0


def _is_elsewhere(holder: Holder) -> bool:
    return holder.owner is not None and not holder.owner.is_here()


def _is_beating(folder: str, holder: Holder) -> bool:
    """Wait for a sign of life, long enough for one that is late; whatever the clocks say."""
    click.echo(f"Waiting for a sign of life of {holder} ...", err=True)
    until_s = time.monotonic() + 3 * BEAT_S
    while time.monotonic() < until_s:
        time.sleep(_LOOK_S)
        now = find_holder(folder)
        if now is None or now.number != holder.number or now.age_s < holder.age_s:
            return now is not None
        holder = now
    return False
