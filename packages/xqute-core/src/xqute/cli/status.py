"""`xqute status`: where the jobs of a run are, as their files tell."""

from __future__ import annotations

import json
from collections import Counter

import click

from .report import EXIT_FAILED
from .runs import STATES, JobFiles, find_run, owner_of, read_jobs

__all__ = ["status"]

_BAD = ("failed", "lost", "not submitted", "vanished")


@click.command()
@click.argument("workdir", required=False, metavar="[RUN]")
@click.option("--failed", is_flag=True, help="List every job that failed.")
@click.option(
    "--json", "as_json", is_flag=True, help="JSON: an object for each job listed, and one for all."
)
def status(workdir: str | None, failed: bool, as_json: bool) -> int:
    """Count the jobs of a run: the latest of this folder, or RUN, a workdir or its name.

    Exits 1 if a job failed. Commands that have not become jobs yet have no files and are not
    counted.
    """
    run_dir = find_run(workdir)
    counts: Counter[str] = Counter()
    for job in read_jobs(run_dir):
        counts[job.state] += 1
        if failed and job.state in _BAD:
            click.echo(json.dumps({"type": "job", **job._asdict()}) if as_json else _describe(job))
    owner = owner_of(run_dir)
    if as_json:
        record = {"type": "status", "workdir": run_dir, "at_work": owner, "total": counts.total()}
        click.echo(
            json.dumps({**record, **{state.replace(" ", "_"): counts[state] for state in STATES}})
        )
    else:
        click.echo(f"{run_dir}: {counts.total():,} jobs" + (f", at work: {owner}" if owner else ""))
        for state, meaning in STATES.items():
            if counts[state]:
                click.echo(f"{counts[state]:>9,} {state:<14} {meaning}")
    return EXIT_FAILED if any(counts[state] for state in _BAD) else 0


def _describe(job: JobFiles) -> str:
    rc = "" if job.rc is None else f" rc {job.rc}"
    return f"#{job.index} {job.state}{rc}{f' {job.cause}' if job.cause else ''}"
