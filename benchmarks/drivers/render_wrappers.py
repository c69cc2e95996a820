"""Render the wrapper script of many `true` jobs, each in its job folder, as a run of xqute does.

Prints `argvs`: for each job the command line by which the local scheduler starts the wrapper.
"""

from __future__ import annotations

import argparse
import json

from xqute.defaults import JOBCMD_WRAPPER_LANG
from xqute.schedulers import get_scheduler


def _render(count: int) -> list[list[str]]:
    scheduler = get_scheduler("local")(workdir="jobs", forks=2)
    argvs = []
    for index in range(count):
        job = scheduler.create_job(index, ["true"])
        script = scheduler.wrapped_job_script(job)
        argvs.append([JOBCMD_WRAPPER_LANG, "-p", str(script)])
    return argvs


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, required=True)
    print(json.dumps({"argvs": _render(parser.parse_args().jobs)}))
