"""Run many `true` tasks of one HyperQueue job on a local cluster with one worker.

Prints `seconds`: wall time from before the job is built until its last task started. (The client
looks for the end only once a second, so the youngest of the tasks' output files tells the time.)
`waited_s` is the time until the client knew.
"""

from __future__ import annotations

import json
import os
import sys
import time

from hyperqueue import Job, LocalCluster  # type: ignore[import-not-found]  # has its own venv
from hyperqueue.cluster import WorkerConfig  # type: ignore[import-not-found]


def _measure(count: int, cores: int) -> dict[str, float]:
    os.mkdir("tasks")
    server_dir = os.path.abspath("server")
    with LocalCluster(server_dir=server_dir, worker_config=WorkerConfig(cores=cores)) as cluster:
        client = cluster.client()
        started = time.time()
        job = Job(default_workdir="tasks", max_fails=None)
        for _ in range(count):
            job.program(["true"])
        client.wait_for_jobs([client.submit(job)])  # raises if a task failed
        waited_s = time.time() - started
    outputs = [entry for entry in os.scandir("tasks") if entry.name.endswith(".stdout")]
    if len(outputs) != count:
        sys.exit(f"only {len(outputs)} of {count} tasks left an output file")
    return {
        "seconds": max(entry.stat().st_mtime for entry in outputs) - started,
        "waited_s": waited_s,
    }


print(json.dumps(_measure(int(sys.argv[1]), int(sys.argv[2]))))
