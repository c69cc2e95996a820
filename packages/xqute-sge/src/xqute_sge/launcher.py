"""The script that Grid Engine runs: its text, rendered from `launcher.sh`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Final

from xqute.cluster.arrays import in_columns
from xqute.wrapper import quote

__all__ = ["NOTE_PREFIX", "render_launcher"]

#: The file in a job's folder in which the launcher says why it ended the job: this and the tag.
NOTE_PREFIX: Final = "job.sge."


def render_launcher(
    *,
    head: str,
    workdir: str,
    folders: Sequence[str],
    tag: str,
    wrapper: str,
    grace_s: float,
    limit_s: int | None,
    wait_s: float,
    restarts: bool = False,
) -> str:
    """Give the whole script.

    Args:
        head: The first lines, verbatim: the shebang, and options.
        workdir: The folder of the run, as jobs see it.
        folders: Those of the jobs in it, in the order of the tasks; "-": there is nothing to do.
        tag: What the claims of all these attempts are named after.
        wrapper: The file name of the wrapper in a job's folder.
        grace_s: Seconds between TERM and KILL.
        limit_s: Seconds until Grid Engine ends the job; None: no limit is known.
        wait_s: Seconds that a file system may take to show the wrapper.
        restarts: Whether Grid Engine may start the job again.
    """
    columns, width = in_columns(folders)
    parameters = {
        "xq_workdir": quote(workdir),
        "xq_folders": quote(columns),
        "xq_width": str(width),
        "xq_tag": quote(tag),
        "xq_wrapper": quote(wrapper),
        "xq_grace_ds": str(max(1, round(grace_s * 10))),
        "xq_limit_s": str(limit_s or 0),
        "xq_wait_ds": str(max(1, round(wait_s * 10))),
        "xq_restarts": "1" if restarts else "",
    }
    lines = "".join(f"{name}={value}\n" for name, value in parameters.items())
    body_before, body_after = _template()
    return f"{head.rstrip()}\n{body_before}{lines}{body_after}"


@cache
def _template() -> tuple[str, str]:
    """What is before the parameters in the template, and after, without comments."""
    text = resources.files(__package__).joinpath("launcher.sh").read_text("ascii")
    before, _, after = re.split(r"^#@.*\n", text.partition("\n")[2], flags=re.MULTILINE)
    return _strip(before), _strip(after)


def _strip(text: str) -> str:
    lines = map(str.strip, text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))
