"""How jobs end in a real Slurm, and what is told of it."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from xqute import JobStatus, Xqute
from xqute.testing import bash, until

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)


def slurm_run(workdir, forks=100, **keywords):
    opts = {"recheck_interval": 1.0, **keywords.pop("opts", {})}
    return Xqute("slurm", workdir=workdir, forks=forks, scheduler_opts=opts, **keywords)


async def until_status(*jobs, status=JobStatus.RUNNING):
    for job in jobs:
        await until(lambda job=job: job.status is status, f"{job!r} is {status.name}", 60)


def said(job):
    return str(job.outcome), str(job.cause)


async def test_a_time_limit_of_slurm_is_told(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"resources": {"walltime_s": 60}}) as xq:
        job = await xq.feed(bash("sleep 300"))
        deaf = await xq.feed(bash("trap '' TERM; sleep 300"))
        await until_status(job, deaf)
        for one in (job, deaf):
            slurm.ask("scontrol", "update", f"jobid={one.jid}", "endtime=now")
    for one in (job, deaf):
        assert said(one) == ("failed", "TIME_LIMIT")
        assert "TIMEOUT" in one.reason
        assert one.rc not in (0, -3)


async def test_who_is_cancelled_by_somebody_else_is_told_so(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"max_running": 1}) as xq:
        jobs = [await xq.feed(bash("sleep 300")) for _ in range(4)]
        await until_status(jobs[0])
        slurm.ask("scancel", jobs[0].jid)
        slurm.ask("scancel", jobs[3].jid)
        await jobs[0].wait()
        await jobs[3].wait()
        await until_status(jobs[1])
        xq.cancel()
    for job in (jobs[0], jobs[3]):
        assert said(job) == ("failed", "REQUESTED")
        assert "somebody else" in job.reason
    assert jobs[3].started_at is None
    assert [str(job.outcome) for job in jobs[1:3]] == ["killed", "cancelled"]


async def test_a_pending_job_alone_that_is_cancelled_by_somebody_else(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"begin": "now+1hour"}) as xq:
        job = await xq.feed(bash("exit 0"))
        await until(lambda: job.submitted_at is not None, "it is submitted", 30)
        slurm.ask("scancel", job.jid)
    assert said(job) == ("failed", "REQUESTED")
    assert job.started_at is None


async def test_a_whole_array_that_is_cancelled_while_it_waits(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"begin": "now+1hour"}) as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(3)]
        await until(lambda: jobs[2].submitted_at is not None, "they are submitted", 30)
        slurm.ask("scancel", jobs[0].jid.partition("_")[0])
    for job in jobs:
        assert said(job) == ("failed", "REQUESTED")
        assert job.started_at is None


@pytest.mark.needs("slurmdbd", "mariadbd")
async def test_an_array_that_was_cancelled_is_one_row_of_accounting(new_slurm, shims, tmp_path):
    slurm = new_slurm(nodes=1, db=1)
    async with slurm_run(tmp_path / "w", opts={"begin": "now+1hour"}) as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(3)]
        await until(lambda: jobs[2].submitted_at is not None, "they are submitted", 30)
        shims.put("squeue", "exit 0")  # it has forgotten all
        array = jobs[0].jid.partition("_")[0]
        slurm.ask("scancel", array)
    rows = slurm.ask("sacct", "-X", "-n", "-P", "-j", array, "-o", "JobID,State").splitlines()
    assert rows == [f"{array}_[0-2]|CANCELLED by 0"]
    for job in jobs:
        assert said(job) == ("failed", "REQUESTED")
        assert job.started_at is None


async def test_a_job_whose_node_fails_is_run_again(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", num_retries=0) as xq:
        job = await xq.feed(
            bash(
                'echo "$SLURMD_NODENAME" >>"$XQUTE_JOB_METADIR/nodes"; '
                "((XQUTE_JOB_TRIAL)) || sleep 300"
            )
        )
        nodes = job.metadir / "nodes"
        await until(lambda: nodes.exists() and nodes.read_text().strip() != "", "it runs", 60)
        node = nodes.read_text().strip()
        slurm.ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    assert (str(job.outcome), job.trial_count) == ("succeeded", 1)
    assert len(nodes.read_text().split()) == 2
    assert job.last_cause == "NODE_FAILED"


async def test_a_preempted_job_is_run_again(new_slurm, tmp_path):
    slurm = new_slurm(
        nodes=1,
        cpus=1,
        extra="PreemptType=preempt/partition_prio\nPreemptMode=CANCEL\n"
        "PartitionName=urgent Nodes=ALL PriorityTier=9 State=UP",
    )
    async with slurm_run(tmp_path / "w", num_retries=0) as xq:
        job = await xq.feed(bash("((XQUTE_JOB_TRIAL)) || { echo ready; sleep 300; }"))
        await until_status(job)
        slurm.ask("sbatch", "-p", "urgent", "-o", "/dev/null", "--wrap", "sleep 1")
    assert (str(job.outcome), job.trial_count, job.last_cause) == ("succeeded", 1, "PREEMPTED")


@pytest.mark.skipif(
    not all(os.path.isdir(f"/sys/fs/cgroup/{name}") for name in ("memory", "freezer")),
    reason="needs version 1 of the kernel's cgroups, with the memory controller",
)
async def test_too_much_memory_is_told_and_may_be_raised(new_slurm, tmp_path):
    new_slurm(nodes=1, cgroups=1)

    def escalate(attempt, last_cause):
        return {"memory_mib": 500 if last_cause == "OUT_OF_MEMORY" else 40}

    # tail keeps what it reads until it has seen a newline.
    script = "head -c 150m /dev/zero | tail >/dev/null; exit ${PIPESTATUS[1]}"
    opts = {"resources": escalate}
    async with slurm_run(tmp_path / "w", error_strategy="retry", num_retries=1, opts=opts) as xq:
        jobs = [await xq.feed(bash(script)) for _ in range(2)]
    for job in jobs:
        assert (job.rc, job.trial_count, job.last_cause) == (0, 1, "OUT_OF_MEMORY")


@pytest.mark.parametrize(
    ("opts", "reason"),
    [
        ({"resources": {"queue": "short", "walltime_s": 3600}}, "PartitionTimeLimit"),
        ({"resources": {"nodes": 3}}, "PartitionNodeLimit"),
        ({"ntasks": 1000}, "PartitionConfig"),
    ],
)
async def test_what_can_never_start_is_told_with_slurms_reason(
    slurm, tmp_path, caplog, opts, reason
):
    async with slurm_run(tmp_path / "w", opts=opts) as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(3)]
        await until(lambda: all(job.reason for job in jobs), "the reasons are told", 60)
        for job in jobs:
            assert reason in job.reason
        xq.cancel()
    assert [str(job.outcome) for job in jobs] == ["cancelled"] * 3
    assert caplog.text.count(reason) == 1


async def test_a_warning_to_the_script_reaches_all_processes_of_a_job(slurm, tmp_path):
    # Slurm sends it when it pleases, within a minute; so it is sent here, in the same way.
    opts = {"signal_before_end_s": 50, "resources": {"walltime_s": 600}}
    script = "trap 'echo warned; exit 9' USR1; echo ready; for ((;;)); do sleep 0.1; done"
    async with slurm_run(tmp_path / "w", opts=opts) as xq:
        alone = await xq.feed(bash(script))
        await until_status(alone)
        array = [await xq.feed(bash(script)) for _ in range(2)]
        quick = await xq.feed(bash("exit 4"))
        for job in (alone, *array):
            await until(
                lambda job=job: (
                    job.stdout_file.exists() and (job.stdout_file.read_text() == "ready\n")
                ),
                "it is ready",
                60,
            )
            slurm.ask("scancel", "--batch", "--signal=USR1", job.jid)
    for job in (alone, *array):
        assert (job.stdout_file.read_text(), job.rc) == ("ready\nwarned\n", 9)
    assert quick.rc == 4


@pytest.mark.parametrize(
    "has_accounting",
    [False, pytest.param(True, marks=pytest.mark.needs("slurmdbd", "mariadbd"))],
)
async def test_what_the_queue_has_forgotten_accounting_may_know(
    new_slurm, shims, tmp_path, has_accounting
):
    new_slurm(nodes=1, db=int(has_accounting))
    async with slurm_run(tmp_path / "w") as xq:
        job = await xq.feed(bash("sleep 300"))
        await until_status(job)
        [claim] = job.metadir.glob("job.start.*")
        shims.put("squeue", "exit 0")  # it knows of nothing
        os.killpg(os.getpgid(int(claim.read_text().split()[2])), signal.SIGKILL)
    if has_accounting:
        assert (job.rc, *said(job)) == (137, "failed", "SIGNAL")
    else:
        assert (job.rc, *said(job)) == (-3, "lost", "DISAPPEARED")


# --- trouble -----------------------------------------------------------------------------------


async def test_a_controller_that_is_away_for_30_s_loses_nothing(slurm, tmp_path):
    loop = asyncio.get_running_loop()
    async with slurm_run(tmp_path / "w", forks=8) as xq:
        for number in range(16):
            await xq.feed(bash(f"sleep 2; exit {number}"))
        await until_status(*xq.jobs[:4])
        slurm.signal("slurmctld", signal.SIGTERM)
        back_at_s = loop.time() + 30
        await until(lambda: not slurm.runs("slurmctld"), "it has ended", 30)
        done = [await job.wait() for job in xq.jobs[:4]]
        assert len(done) == 4, "they end without it"
        await asyncio.sleep(back_at_s - loop.time())
        slurm.start()
    assert [job.rc for job in xq.jobs] == list(range(16))
    assert {job.trial_count for job in xq.jobs} == {0}


async def test_a_controller_that_is_killed_and_started_again(new_slurm, tmp_path):
    slurm = new_slurm(nodes=1)  # it may give out old ids again, which its nodes then refuse
    async with slurm_run(tmp_path / "w") as xq:
        for number in range(6):
            await xq.feed(bash(f'echo x >>"$XQUTE_JOB_METADIR/runs"; sleep 3; exit {number}'))
        await until_status(*xq.jobs)
        slurm.signal("slurmctld", signal.SIGKILL)
        await until(lambda: not slurm.runs("slurmctld"), "it has ended", 30)
        slurm.start()
    assert [job.rc for job in xq.jobs] == list(range(6))
    assert [(job.metadir / "runs").read_text() for job in xq.jobs] == ["x\n"] * 6


ONCE = 'echo x >>"$XQUTE_JOB_METADIR/runs"; '


def runs_of(job):
    return (job.metadir / "runs").read_text()


async def kill_slurmd(slurm, name):
    slurm.signal(name, signal.SIGKILL)
    await until(lambda: not slurm.runs(name), "it has ended", 30)


async def test_a_node_daemon_that_is_killed_and_started_again(new_slurm, tmp_path):
    slurm = new_slurm(nodes=1, extra="SlurmdTimeout=300")  # it is not given up meanwhile
    [daemon] = [file.stem for file in (slurm.folder / "pid").glob("slurmd-*.pid")]
    go = tmp_path / "go"
    wait = f"{ONCE} until [[ -e {go} ]]; do sleep 0.05; done"
    async with slurm_run(tmp_path / "w") as xq:
        meanwhile = [await xq.feed(bash(f"{ONCE} sleep 2; exit {rc}")) for rc in (0, 3)]
        later = [await xq.feed(bash(f"{wait}; exit {rc}")) for rc in (0, 4)]
        await until_status(*xq.jobs)
        await kill_slurmd(slurm, daemon)
        assert [str(await job.wait()) for job in meanwhile] == ["succeeded", "failed"]
        slurm.start()
        go.touch()
    assert [job.rc for job in (*meanwhile, *later)] == [0, 3, 0, 4]
    assert [runs_of(job) for job in xq.jobs] == ["x\n"] * 4
    assert [job.trial_count for job in xq.jobs] == [0] * 4


async def test_the_jobs_of_a_node_whose_daemon_stays_dead_run_again_elsewhere(new_slurm, tmp_path):
    """Slurm does not do that by itself, under the same id: it says that their node has failed."""
    slurm = new_slurm(nodes=2, cpus=1, extra="SlurmdTimeout=5")
    async with slurm_run(tmp_path / "w", num_retries=0) as xq:
        command = (
            'echo "$SLURMD_NODENAME" >>"$XQUTE_JOB_METADIR/nodes"; '
            'until [[ -e "$XQUTE_JOB_METADIR/go" ]]; do sleep 0.05; done; exit 6'
        )
        jobs = [await xq.feed(bash(command)) for _ in range(2)]
        await until_status(*jobs)

        def nodes_of(job):
            file = job.metadir / "nodes"
            return file.read_text().split() if file.exists() else []

        await until(lambda: all(map(nodes_of, jobs)), "both run", 60)
        [lost], [kept] = map(nodes_of, jobs)
        await kill_slurmd(slurm, f"slurmd-{lost}")
        await until(lambda: jobs[0].trial_count == 1, "its node has failed", 120)
        jobs[1].write_file("go", "")
        await until(lambda: len(nodes_of(jobs[0])) > 1, "it runs again", 60)
        jobs[0].write_file("go", "")
    assert [(job.rc, job.trial_count) for job in jobs] == [(6, 1), (6, 0)]
    assert jobs[0].last_cause == "NODE_FAILED"
    assert nodes_of(jobs[0]) == [lost, kept]
    assert nodes_of(jobs[1]) == [kept]


async def test_a_queue_that_never_answers_delays_no_end(slurm, shims, tmp_path):
    shims.put("squeue", "exec sleep 1000")
    async with slurm_run(tmp_path / "w", opts={"client_timeout_s": 1.0}) as xq:
        jobs = [await xq.feed(bash("sleep 2; exit 0")) for _ in range(3)]
        fails = await xq.feed(bash("exit 3"))
    assert [job.rc for job in (*jobs, fails)] == [0, 0, 0, 3]
    assert jobs[0].ended_at - jobs[0].started_at < 4


async def test_without_events_the_queue_tells_when_to_look(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr("xqute._engine.spool.EventSpool.start", lambda spool: None)
    async with slurm_run(tmp_path / "w") as xq:
        jobs = [await xq.feed(bash(f"exit {number}")) for number in (0, 3)]
    assert [job.rc for job in jobs] == [0, 3]


async def test_the_queue_is_asked_as_often_for_many_as_for_one(slurm, shims, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"recheck_interval": 2.0}) as xq:
        for _ in range(30):
            await xq.feed(bash("sleep 7"))
        jobs = xq.jobs
        await until_status(*jobs)
        began = shims.count("squeue")
    assert shims.count("squeue") - began <= 5
    assert {job.rc for job in jobs} == {0}
