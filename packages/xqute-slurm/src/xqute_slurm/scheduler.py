"""The scheduler for Slurm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xqute import Job
from xqute.cluster import ClusterScheduler, QueueRow, client_program
from xqute.defaults import JOBCMD_WRAPPER_LANG

from .client import ArrayRefusedError, SlurmClient
from .options import build_head, build_options, map_resources

__all__ = ["SlurmScheduler"]


class SlurmScheduler(ClusterScheduler):
    """Runs jobs on a Slurm cluster, through its own programs.

    Many jobs go as one array, and have native ids like ``123_4``. The workdir must be where the
    nodes see it.

    Args:
        sbatch: The program's name or path; likewise `squeue`, `scancel` and `sacct`.

    Further arguments are those of `ClusterScheduler`; any others are options of sbatch: one letter
    `k=v` becomes ``-k v``, others ``--key=v`` with `_` as ``-``, True a bare flag.

    Raises:
        ConfigError: If an option or a resource makes no sense.
    """

    name = "slurm"
    task_place = "SLURM_ARRAY_TASK_ID"
    restarted = "SLURM_RESTART_COUNT"
    sbatch = client_program("sbatch")
    squeue = client_program("squeue")
    scancel = client_program("scancel")
    sacct = client_program("sacct")

    def __init__(
        self,
        *args: Any,
        sbatch: str = "sbatch",
        squeue: str = "squeue",
        scancel: str = "scancel",
        sacct: str = "sacct",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.client = SlurmClient(
            sbatch=sbatch,
            squeue=squeue,
            scancel=scancel,
            sacct=sacct,
            timeout_s=self.client_timeout_s,
        )
        build_options(self.config)

    # --- options and scripts -------------------------------------------------------------------

    def build_options(self, job: Job) -> tuple[str, ...]:
        """Give the options of a job's submission but for its name and array.

        What a job says goes before what the scheduler says, and native options before resources.
        """
        resources = map_resources(self.resources_of(job))
        layers: list[Mapping[str, Any]] = [resources, self.config]
        if job.resources is not None:
            of_all = map_resources(self.resources_of(job, own=False))
            changed = {key: value for key, value in resources.items() if of_all.get(key) != value}
            layers.append(changed)
        layers.append(job.scheduler_opts or {})
        return build_options(*layers, signal_before_end_s=self.signal_before_end_s)

    def build_head(self, options: Sequence[str], name: str, n_tasks: int | None) -> str:
        """Give the shebang and the ``#SBATCH`` lines."""
        shebang = f"#!{JOBCMD_WRAPPER_LANG} -p"
        return build_head(shebang, options, name, n_tasks, self.max_running)

    def may_restart(self, job: Job) -> bool:
        """Whether the job has the option ``requeue``."""
        return bool({**self.config, **(job.scheduler_opts or {})}.get("requeue"))

    @property
    def jobcmd_wrapper_init(self) -> str:
        """Bash code that tells the wrapper its native id, and how often Slurm has restarted it."""
        return (
            "xq_native=${SLURM_ARRAY_JOB_ID-${SLURM_JOB_ID-}}"
            "${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}\n"
            f"xq_restart=${{{self.restarted}:-0}}"
        )

    # --- what is asked of Slurm ----------------------------------------------------------------

    async def submit_script(self, path: str, name: str, n_tasks: int | None) -> str:
        """Submit a script; an array that is too long for the site shortens those to come."""
        try:
            return await self.client.submit(path, n_tasks)
        except ArrayRefusedError as exc:
            most = math.ceil((n_tasks or 1) / 2) if exc.most is None else exc.most
            self.array_size = max(1, min(most, (n_tasks or 1) - 1, self.array_size))
            raise

    def build_jid(self, submission_id: str, place: int) -> str:
        """Give ``<array id>_<task>``: the raw id is not known before it starts, and may change."""
        return f"{submission_id}_{place}"

    async def read_queue(self) -> Mapping[str, QueueRow]:
        """Ask squeue for all jobs of the user."""
        return await self.client.read_queue()

    async def read_accounting(self, jids: Sequence[str]) -> Mapping[str, QueueRow]:
        """Ask sacct, if the site has accounting."""
        return await self.client.read_accounting(jids)

    def was_removed(self, jid: str, rows: Mapping[str, QueueRow]) -> bool:
        """Whether a task was cancelled while it was pending: its array is there, and it is not."""
        submission, _, place = jid.partition("_")
        return bool(place) and any(row.submission_id == submission for row in rows.values())

    async def end_jobs(self, waiting: Sequence[str], running: Sequence[str], force: bool) -> None:
        """Cancel waiting jobs; signal all processes of running ones, so that our grace holds."""
        if waiting:
            await self.client.cancel(waiting)
        if running:
            await self.client.cancel(running, "--full", f"--signal={'KILL' if force else 'TERM'}")
