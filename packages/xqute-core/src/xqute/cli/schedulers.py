"""`xqute schedulers`: where jobs can run, and what would have to be installed."""

from __future__ import annotations

import json

import click

from ..errors import SchedulerNotFoundError
from ..schedulers import _OFFICIAL, get_scheduler, installed_schedulers

__all__ = ["schedulers"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON object for each.")
def schedulers(as_json: bool) -> int:
    """List the schedulers that are installed, and those that can be."""
    records = []
    for name, entry_point in sorted(installed_schedulers().items()):
        dist = entry_point.dist
        records.append(
            {
                "name": name,
                "installed": True,
                "distribution": f"{dist.name} {dist.version}" if dist else None,
                "class": entry_point.value,
                "error": why_unusable(name),
            }
        )
    there = {record["name"] for record in records}
    for name, distribution in _OFFICIAL.items():
        if name not in there:
            records.append({"name": name, "installed": False, "distribution": distribution})
    for record in records:
        if as_json:
            click.echo(json.dumps(record))
        elif not record["installed"]:
            click.echo(f"{record['name']:<12} not installed: pip install {record['distribution']}")
        else:
            trouble = f"  UNUSABLE: {record['error']}" if record["error"] else ""
            click.echo(
                f"{record['name']:<12} {record['distribution'] or '?'}  {record['class']}{trouble}"
            )
    return 0


def why_unusable(name: str) -> str | None:
    """Give why an installed scheduler cannot be used; None: it can be loaded."""
    try:
        get_scheduler(name)
    except SchedulerNotFoundError as exc:
        return str(exc)
    except Exception as exc:  # noqa: BLE001  # somebody else's module may raise anything
        return f"{type(exc).__name__}: {exc}"
    return None
