"""What jobs ask of this machine: cores, memory and graphics processors are slots beside `forks`."""

from __future__ import annotations

import asyncio
import os

import pytest

from xqute import JobOutcome, Resources, Xqute
from xqute.machine import Holding, Machine, impossible

FOUR_CORES = Machine(cpus=4, memory_mib=1000, gpus=("0", "1", "2"))


def test_what_is_left_of_a_machine():
    held = [Holding(Resources(cpus=2, memory_mib=600), ("1",))]
    assert FOUR_CORES.fit(Resources(cpus=2, memory_mib=400), held) == ()
    assert FOUR_CORES.fit(Resources(cpus=3), held) is None
    assert FOUR_CORES.fit(Resources(memory_mib=401), held) is None
    assert FOUR_CORES.fit(Resources(gpus=2), held) == ("0", "2")
    assert FOUR_CORES.fit(Resources(gpus=3), held) is None
    unknown = FOUR_CORES._replace(memory_mib=None)
    assert unknown.fit(Resources(memory_mib=10**9), held) == ()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cpus": 5}, "5 cpus were asked for, and there are 4"),
        ({"memory_mib": 1001}, "1001 MiB were asked for, of 1000"),
        ({"gpus": 4}, "4 gpus were asked for, and there are 3"),
        ({"nodes": 2}, "2 nodes"),
        ({"queue": "short"}, "queue means nothing on this machine"),
        ({"gpus": 1, "gpu_type": "a100"}, "gpu_type means nothing"),
        ({"cpus": 4, "memory_mib": 1000, "gpus": 3, "walltime_s": 5}, ""),
    ],
)
def test_what_can_never_be_had_is_said(asked, said):
    assert said in impossible(Resources(**asked), FOUR_CORES)
    assert bool(said) == bool(impossible(Resources(**asked), FOUR_CORES))


def test_this_machine_is_looked_at():
    machine = Machine.detect()
    assert machine.cpus == len(os.sched_getaffinity(0))
    assert 100 < machine.memory_mib < 10**8


async def test_jobs_that_need_all_cores_run_one_at_a_time(tmp_path):
    all_of_them = {"cpus": len(os.sched_getaffinity(0))}
    command = f"mkdir {tmp_path}/alone && sleep 0.05 && rmdir {tmp_path}/alone"
    async with Xqute(workdir=tmp_path / "w", forks=4) as xq:
        for _ in range(6):
            await xq.feed(["bash", "-c", command], resources=all_of_them)
        small = await xq.feed("true")
    assert [job.rc for job in xq.jobs] == [0] * 7
    assert small.outcome is JobOutcome.SUCCEEDED


async def test_what_the_machine_has_not_fails_that_job_alone(tmp_path):
    async with Xqute(workdir=tmp_path / "w", forks=2) as xq:
        too_big = await xq.feed("true", resources={"cpus": 100_000})
        other = await xq.feed("true", resources={"cpus": 1})
    assert too_big.outcome is JobOutcome.SUBMIT_FAILED
    assert "100000 cpus were asked for" in too_big.reason
    assert other.outcome is JobOutcome.SUCCEEDED


async def test_each_job_sees_the_graphics_processors_that_it_has(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    taken = 'for g in ${CUDA_VISIBLE_DEVICES//,/ }; do mkdir "$0/$g" || exit 9; done; sleep 0.05'
    given = 'for g in ${CUDA_VISIBLE_DEVICES//,/ }; do rmdir "$0/$g"; done'
    command = ["bash", "-c", f"{taken}; {given}; echo $CUDA_VISIBLE_DEVICES", str(tmp_path)]
    async with Xqute(workdir=tmp_path / "w", forks=8) as xq:
        for n_gpus in (1, 1, 2, 1, 2, 1):
            await xq.feed(command, resources={"gpus": n_gpus})
    assert [job.rc for job in xq.jobs] == [0] * 6
    seen = [job.stdout_file.read_text().strip() for job in xq.jobs]
    assert [seen[2], seen[4]] == ["3,5"] * 2
    assert {seen[0], seen[1], seen[3], seen[5]} <= {"3", "5"}


async def test_a_job_of_an_earlier_run_keeps_its_graphics_processor(tmp_path, monkeypatch, until):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    command = f"echo $CUDA_VISIBLE_DEVICES; until [ -e {tmp_path}/go ]; do sleep 0.01; done"

    def make():
        opts = {"resources": {"gpus": 1}}
        return Xqute(workdir=tmp_path / "w", forks=2, scheduler_opts=opts)

    first = make()
    before = await first.feed(["bash", "-c", command])
    await until(lambda: before.stdout_file.exists() and before.stdout_file.read_text())
    await first.detach()
    async with make() as second:
        adopted = await second.feed(["bash", "-c", command])
        other = await second.feed(["bash", "-c", command])
        await until(lambda: other.stdout_file.exists() and other.stdout_file.read_text())
        (tmp_path / "go").touch()
    assert (adopted.adopted, adopted.rc, other.adopted, other.rc) == (True, 0, False, 0)
    assert adopted.stdout_file.read_text() == "3\n"
    assert other.stdout_file.read_text() == "5\n"


async def test_the_walltime_ends_a_job(tmp_path):
    async with Xqute(workdir=tmp_path / "w") as xq:
        job = await xq.feed("sleep 60", resources={"walltime_s": 0.2})
        await asyncio.wait([asyncio.ensure_future(job.wait())])
    assert job.outcome is JobOutcome.TIMEOUT
