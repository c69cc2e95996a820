"""Drivers that are killed at any moment: each job runs once, and nothing is left of it."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import textwrap

import pytest

pytestmark = [
    pytest.mark.concurrency,
    pytest.mark.needs("dockerd", "podman", "busybox", "apptainer", root=True),
]

N_JOBS, N_KILLS = 6, 4
DRIVER = """
    import asyncio, json, sys
    from xqute import Xqute

    SCRIPT = 'echo run >>"$XQUTE_JOB_METADIR/runs"; sleep 0.$((RANDOM % 9))'

    async def main():
        how = {"scheduler_opts": json.loads(sys.argv[2]), "forks": 3, "resume": True}
        async with Xqute("container", workdir=sys.argv[1], **how) as xq:
            for _ in range(int(sys.argv[3])):
                await xq.feed(["bash", "-c", SCRIPT])
        print(json.dumps([[job.rc, str(job.outcome)] for job in xq.jobs]))

    asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["docker", "podman", "apptainer"])
async def test_whoever_comes_after_a_killed_driver_finishes_its_work(request, name, tmp_path):
    engine = request.getfixturevalue(name)
    workdir = tmp_path / "work"
    argv = [sys.executable, "-c", textwrap.dedent(DRIVER)]
    argv += [str(workdir), json.dumps(engine.options), str(N_JOBS)]
    for _ in range(N_KILLS):
        driver = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.DEVNULL)
        try:
            await asyncio.wait_for(driver.wait(), random.uniform(0.3, 3))
        except TimeoutError:
            driver.kill()
            await driver.wait()
    last = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    said, _ = await asyncio.wait_for(last.communicate(), 90)
    assert json.loads(said) == [[0, "succeeded"]] * N_JOBS
    runs = [(workdir / str(index) / "runs").read_text() for index in range(N_JOBS)]
    assert runs == ["run\n"] * N_JOBS, "a command ran twice, or never"
    left = engine.containers()
    engine.remove_all()
    assert left == []
