"""The wrapper of a job's current attempt, put together from what its scheduler says."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import wrapper
from .job import Job

if TYPE_CHECKING:
    from .scheduler import Scheduler

__all__ = ["render_script"]


def render_script(scheduler: Scheduler, job: Job) -> str:
    """Render the wrapper. Bytes that are no text are surrogates.

    Raises:
        InvalidJobError: If the command or an environment variable cannot be passed.
    """
    cwd = scheduler.cwd if job.cwd is None else job.cwd
    native_id = scheduler.native_id_variable
    spool = f"{scheduler._mounted_workdir}/.run/events" if scheduler.leaves_events else ""
    return wrapper.render(
        {
            "shebang": scheduler.jobcmd_shebang(job),
            "wrapper_init": scheduler.jobcmd_wrapper_init,
            "parameters": wrapper.build_parameters(
                index=job.index,
                attempt=job.trial_count,
                tag=scheduler.claim_tag(job),
                directory=scheduler.mounted_dir(job),
                spool=spool,
                timeout_s=0 if scheduler.enforces_timeout else scheduler.timeout_of(job),
                grace_s=scheduler.kill_grace_s,
                native_id=f'"${{{native_id}-}}"' if native_id else "''",
                restarts=scheduler.may_restart(job),
                own_pids=scheduler.has_own_pids,
                upload_s=scheduler.upload_interval_s,
            ),
            "environment": wrapper.build_environment(scheduler.environment_of(job)),
            "cwd": "" if cwd is None else os.fspath(cwd),
            "jobcmd_init": scheduler.jobcmd_init(job),
            "prescript": scheduler.prescript,
            "cmd": wrapper.quote_command(job.cmd),
            "jobcmd_prep": scheduler.jobcmd_prep(job),
            "postscript": scheduler.postscript,
            "jobcmd_end": scheduler.jobcmd_end(job),
        }
    )
