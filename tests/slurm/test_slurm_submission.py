"""How jobs get into a real Slurm: arrays, refusals, lost answers, bad input."""

from __future__ import annotations

import signal
import subprocess

import pytest

from xqute import Xqute
from xqute.testing import bash, until
from xqute_slurm import SlurmScheduler

pytestmark = pytest.mark.needs("slurmctld", "slurmd", "munged", "sbatch", root=True)

APPENDS = 'echo "$SLURM_JOB_ID" >>"$XQUTE_JOB_METADIR/runs"'


def slurm_run(workdir, forks=100, **keywords):
    opts = keywords.pop("opts", {})
    return Xqute("slurm", workdir=workdir, forks=forks, scheduler_opts=opts, **keywords)


def runs_of(job):
    file = job.metadir / "runs"
    return file.read_text().splitlines() if file.exists() else []


async def until_submitted(job):
    await until(lambda: job.submitted_at is not None, f"{job!r} is submitted", 60)


async def test_many_jobs_are_one_array_and_each_has_its_own_end(slurm, shims, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        for number in range(40):
            await xq.feed(bash(f"echo {number}; exit {number % 5}"))
    assert [job.rc for job in xq.jobs] == [number % 5 for number in range(40)]
    assert [job.stdout_file.read_text() for job in xq.jobs] == [f"{n}\n" for n in range(40)]
    assert shims.count("sbatch") == 1
    array = str(xq.jobs[0].jid).partition("_")[0]
    assert [job.jid for job in xq.jobs] == [f"{array}_{number}" for number in range(40)]


async def test_a_plan_is_the_users_alone_and_stays_as_long_as_it_has_jobs(slurm, tmp_path):
    folder = tmp_path / "w" / ".run" / "plans"
    script = 'until [[ -e "$XQUTE_METADIR/go-$1" ]]; do sleep 0.1; done; exit $XQUTE_JOB_TRIAL'

    def keys():
        return sorted(path.stem for path in folder.glob("*.sh"))

    async with slurm_run(tmp_path / "w", error_strategy="retry", num_retries=1) as xq:
        for number in (0, 0, 1, 1):
            job = await xq.feed(bash(script, str(number)))
            if job.index % 2:
                await until_submitted(job)
        first, second = keys()
        for file in folder.iterdir():
            assert file.stat().st_mode & 0o077 == 0, f"{file} is for the user alone"
        (tmp_path / "w" / "go-0").touch()
        for job in xq.jobs[:2]:
            await job.wait()
        late = [await xq.feed(bash(script, "1")) for _ in range(2)]
        await until_submitted(late[1])
        assert first not in keys()
        assert second in keys()
        await xq.detach()
    assert second in keys()
    (tmp_path / "w" / "go-1").touch()
    await until(lambda: slurm.names() == [], "they have ended", 60)
    async with slurm_run(tmp_path / "w") as xq:
        await xq.feed(bash("exit 0"))
    assert list(folder.iterdir()) == []


async def test_the_native_id_is_in_the_start_claim(slurm, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(2)]
        await jobs[0].wait()
        await jobs[1].wait()
        alone = await xq.feed(bash("exit 0"))
    for job in (*jobs, alone):
        [claim] = job.metadir.glob("job.start.*")
        assert claim.read_text().split()[-1] == str(job.jid)


async def test_a_retry_of_a_task_is_a_submission_of_its_own(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", error_strategy="retry", num_retries=2) as xq:
        for number in range(6):
            await xq.feed(bash(f"{APPENDS}; exit $(({number} > 3 && XQUTE_JOB_TRIAL < 2))"))
    assert [(job.rc, job.trial_count) for job in xq.jobs] == [(0, 0)] * 4 + [(0, 2)] * 2
    assert [len(runs_of(job)) for job in xq.jobs] == [1] * 4 + [3] * 2


async def test_one_task_is_killed_and_the_others_are_not(slurm, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        xq.scheduler.kill_grace_s = 1.0
        for _ in range(4):
            await xq.feed(bash('until [[ -e "$XQUTE_METADIR/go" ]]; do sleep 0.05; done'))
        await until(lambda: all(job.status.name == "RUNNING" for job in xq.jobs), "all run", 30)
        await xq.scheduler.kill_job_and_update_status(xq.jobs[2])
        (tmp_path / "w" / "go").touch()
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded"] * 2 + ["killed", "succeeded"]


@pytest.mark.parametrize(("most", "n_submissions"), [(8, 3), (1, 20), (0, 20)])
async def test_a_site_that_takes_short_arrays_or_none_gets_them(
    new_slurm, shims, tmp_path, most, n_submissions
):
    new_slurm(nodes=1, extra=f"MaxArraySize={most}")
    async with slurm_run(tmp_path / "w") as xq:
        for number in range(20):
            await xq.feed(bash(f"exit {number}"))
    assert [job.rc for job in xq.jobs] == list(range(20))
    assert xq.scheduler.array_size == max(1, most)
    assert shims.count("sbatch") == 1 + n_submissions


async def test_max_running_holds_back_the_tasks_of_an_array(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"max_running": 2}) as xq:
        for _ in range(6):
            await xq.feed(
                bash(
                    'touch "$XQUTE_METADIR/on-$$"; ls "$XQUTE_METADIR" | grep -c on-; sleep 0.3; '
                    'rm "$XQUTE_METADIR/on-$$"'
                )
            )
    assert 1 <= max(int(job.stdout_file.read_text()) for job in xq.jobs) <= 2


# --- answers that are lost, and refusals -------------------------------------------------------


async def test_an_answer_that_was_lost_is_looked_up(slurm, shims, tmp_path):
    real = shims.real["sbatch"]
    shims.put("sbatch", f'{real} "$@" >/dev/null; echo "Socket timed out on send/recv" >&2; exit 1')
    async with slurm_run(tmp_path / "w") as xq:
        alone = await xq.feed(bash(f"{APPENDS}; exit 3"))
        await alone.wait()
        for _ in range(3):
            await xq.feed(bash(f"{APPENDS}; exit 4"))
    assert [job.rc for job in xq.jobs] == [3, 4, 4, 4]
    assert [len(runs_of(job)) for job in xq.jobs] == [1] * 4
    assert [job.trial_count for job in xq.jobs] == [0] * 4
    assert shims.count("sbatch") == 2


async def test_a_controller_that_hangs_during_a_submission_runs_nothing_twice(slurm, tmp_path):
    slurm.signal("slurmctld", signal.SIGSTOP)
    async with slurm_run(tmp_path / "w", opts={"client_timeout_s": 2}) as xq:
        for _ in range(3):
            await xq.feed(bash(f"{APPENDS}; exit 5"))
        await until(lambda: xq.jobs[0].trial_count > 0, "the first attempt was given up", 60)
        slurm.signal("slurmctld", signal.SIGCONT)
    assert [job.rc for job in xq.jobs] == [5, 5, 5]
    assert [len(runs_of(job)) for job in xq.jobs] == [1, 1, 1]


async def test_a_refusal_for_now_waits_and_loses_nothing(slurm, shims, tmp_path):
    real = shims.real["sbatch"]
    shims.put(
        "sbatch",
        f'[[ $(wc -l <{shims.log}) -gt 2 ]] && exec {real} "$@"\n'
        'echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2\n'
        'echo "sbatch: error: Batch job submission failed: Job violates QOS policy" >&2\n'
        "exit 1",
    )
    async with slurm_run(tmp_path / "w", num_retries=0) as xq:
        jobs = [await xq.feed(bash("exit 6")) for _ in range(5)]
    assert [(job.rc, job.trial_count) for job in jobs] == [(6, 0)] * 5


@pytest.mark.needs("slurmdbd", "mariadbd")
async def test_a_limit_of_the_users_delays_and_is_not_charged(new_slurm, shims, tmp_path, caplog):
    """An array is as many jobs as it has tasks: one that is too long would never be accepted."""
    slurm = new_slurm(nodes=1, db=1, extra="AccountingStorageEnforce=associations,limits,qos")
    limits = {
        "AssocMaxSubmitJobLimit": ("user", "root", "MaxSubmitJobs"),
        "QOSMaxSubmitJobPerUserLimit": ("qos", "normal", "MaxSubmitJobsPerUser"),
    }
    for reason, (kind, name, limit) in limits.items():
        slurm.ask("sacctmgr", "-i", "modify", kind, name, "set", f"{limit}=4")
        await until(lambda: is_refused(slurm, reason), "the limit is known", 60)  # noqa: B023
        async with slurm_run(tmp_path / reason, num_retries=0) as xq:
            for number in range(7):
                await xq.feed(bash(f"{APPENDS}; exit {number}"))
        assert [(job.rc, job.trial_count) for job in xq.jobs] == [(n, 0) for n in range(7)]
        assert [len(runs_of(job)) for job in xq.jobs] == [1] * 7
        assert "limit" in caplog.text
        slurm.ask("sacctmgr", "-i", "modify", kind, name, "set", f"{limit}=-1")


async def test_a_controller_that_is_full_delays_and_is_not_charged(new_slurm, tmp_path):
    """Sbatch asks it again and again, for minutes; an array as long as this it never takes."""
    new_slurm(nodes=1, extra="MaxJobCount=5\nMinJobAge=2")
    async with slurm_run(tmp_path / "w", num_retries=0, opts={"client_timeout_s": 1.0}) as xq:
        for number in range(7):
            await xq.feed(bash(f"{APPENDS}; exit {number}"))
    assert [job.rc for job in xq.jobs] == list(range(7))
    assert [len(runs_of(job)) for job in xq.jobs] == [1] * 7


@pytest.mark.needs("slurmdbd", "mariadbd")
async def test_a_limit_that_one_job_alone_is_over_is_told_at_once(new_slurm, tmp_path):
    slurm = new_slurm(nodes=1, db=1, extra="AccountingStorageEnforce=associations,limits,qos")
    limits = ["MaxTRESPerUser=cpu=1", "Flags=DenyOnLimit"]
    slurm.ask("sacctmgr", "-i", "modify", "qos", "normal", "set", *limits)
    reason = "QOSMaxCpuPerUserLimit"
    await until(lambda: is_refused(slurm, reason, "-c2"), "the limit is known", 60)
    async with slurm_run(tmp_path / "w") as xq:
        large = [await xq.feed(bash("exit 0"), resources={"cpus": 2}) for _ in range(2)]
        small = [await xq.feed(bash(f"exit {number}")) for number in range(3)]
    assert [str(job.outcome) for job in large] == ["submit_failed"] * 2
    assert all(reason in job.reason for job in large)
    assert [job.rc for job in small] == [0, 1, 2]


def is_refused(slurm, reason, *options):
    """Whether an array of five is refused for this reason."""
    argv = ["sbatch", "--test-only", "--array=0-4", *options, "-o", "/dev/null", "--wrap", "true"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    return reason in done.stderr


async def test_keys_are_found_by_a_scheduler_that_knows_nothing(slurm, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        first = await xq.feed(bash("sleep 60"))
        await until_submitted(first)
        for _ in range(3):
            await xq.feed(bash("sleep 60"))
        await until_submitted(xq.jobs[3])
        keys = [xq.scheduler.submission_key(job) for job in xq.jobs]
        other = type(xq.scheduler)(tmp_path / "w", jobname_prefix="another")
        found = await other.find_submitted([*keys, "xq-00000000-0-0"])
        assert found == {key: job.jid for key, job in zip(keys, xq.jobs, strict=True)}
        assert len(set(found.values())) == 4
        xq.cancel()


async def test_a_job_that_has_our_id_now_is_not_touched(slurm, tmp_path):
    """Slurm gives ids out again when it has lost its state."""
    stranger = slurm.ask("sbatch", "--parsable", "--hold", "-o", "/dev/null", "--wrap", "true")
    scheduler = SlurmScheduler(tmp_path / "w")
    job = scheduler.create_job(0, bash("exit 0"))
    job.jid = stranger
    await scheduler.kill_jobs([job])
    await scheduler.kill_jobs([job], force=True)
    assert not await scheduler.job_is_running(job)
    assert slurm.ask("squeue", "-h", "-o", "%T", "-j", stranger) == "PENDING"


async def test_a_submission_that_the_controller_forgets_runs_once_at_the_most(new_slurm, tmp_path):
    """Killed within two seconds, it may have it no more, and give its id to the next."""
    slurm = new_slurm(nodes=1)
    async with slurm_run(tmp_path / "w", opts={"hold": True, "recheck_interval": 1.0}) as xq:
        jobs = [await xq.feed(bash(APPENDS)) for _ in range(3)]
        await until_submitted(jobs[2])
        slurm.signal("slurmctld", signal.SIGKILL)
        await until(lambda: not slurm.runs("slurmctld"), "it has ended", 30)
        slurm.start()
        stranger = slurm.ask("sbatch", "--parsable", "--hold", "-o", "/dev/null", "--wrap", "true")
        xq.cancel()
    assert {str(job.outcome) for job in jobs} <= {"cancelled", "lost"}
    assert [runs_of(job) for job in jobs] == [[]] * 3
    assert slurm.ask("squeue", "-h", "-o", "%T", "-j", stranger) == "PENDING"


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ({"sbatch": "/no/such/sbatch"}, "/no/such/sbatch cannot be run"),
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"prescrpt": "typo"}, "unrecognized option '--prescrpt=typo'"),
        ({"resources": {"memory_mib": 10**9}}, "Memory specification can not be satisfied"),
        ({"time": "soon"}, "Invalid --time"),
        ({"resources": lambda attempt, cause: {"cpus": 0}}, "cpus"),
    ],
)
async def test_what_slurm_refuses_is_told_in_its_words(slurm, tmp_path, opts, words):
    async with slurm_run(tmp_path / "w", opts=opts) as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(3)]
    for job in jobs:
        assert (str(job.outcome), job.rc) == ("submit_failed", -2)
        assert words in job.reason
        assert words in job.stderr_file.read_text()


async def test_a_walltime_over_the_limit_of_a_strict_site_is_told_at_once(new_slurm, tmp_path):
    """No wait would make it acceptable; other sites leave such a job pending."""
    new_slurm(nodes=1, extra="EnforcePartLimits=ALL")
    long = {"resources": {"queue": "short", "walltime_s": 3600}}
    async with slurm_run(tmp_path / "w") as xq:
        jobs = [await xq.feed(bash("exit 0"), **long) for _ in range(2)]
        other = await xq.feed(bash("exit 3"))
    assert [str(job.outcome) for job in jobs] == ["submit_failed"] * 2
    assert "Requested time limit is invalid" in jobs[0].reason
    assert other.rc == 3


async def test_one_job_with_an_odd_option_does_not_harm_the_others(slurm, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        await xq.feed(bash("exit 0"))
        odd = await xq.feed(bash("exit 0"), scheduler_opts={"wrap": "x"})
        await xq.feed(bash("exit 0"))
    assert [str(job.outcome) for job in xq.jobs] == ["succeeded", "submit_failed", "succeeded"]
    assert "wrap" in odd.reason


async def test_no_slurm_conf_is_told(slurm, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_CONF")
    async with slurm_run(tmp_path / "w") as xq:
        job = await xq.feed(bash("exit 0"))
    assert str(job.outcome) == "submit_failed"
    assert "configuration source" in job.reason


async def test_an_output_that_cannot_be_opened_is_told(slurm, tmp_path):
    async with slurm_run(tmp_path / "w", opts={"output": "/no/such/folder/out"}) as xq:
        job = await xq.feed(bash(APPENDS))
    assert (str(job.outcome), str(job.cause), runs_of(job)) == ("failed", "SETUP", [])


async def test_a_missing_working_directory_is_told(slurm, tmp_path):
    async with slurm_run(tmp_path / "w") as xq:
        job = await xq.feed(bash(APPENDS), cwd="/no/such/folder")
    assert (str(job.outcome), str(job.cause), runs_of(job)) == ("failed", "SETUP", [])


async def test_munge_down_is_waited_for(slurm, tmp_path, caplog):
    slurm.signal("munged", signal.SIGTERM)
    await until(lambda: not slurm.runs("munged"), "it has ended", 20)
    async with slurm_run(tmp_path / "w", num_retries=0) as xq:
        job = await xq.feed(bash("exit 7"))
        await until(lambda: "submissions wait" in caplog.text, "it is told", 60)
        slurm.start()
    assert (job.rc, job.trial_count) == (7, 0)


async def test_odd_prefixes_and_long_environments_do_no_harm(slurm, tmp_path, monkeypatch):
    monkeypatch.setenv("XQ_LONG", "x" * 100_000)
    monkeypatch.setenv("SLURM_NTASKS", "77")
    monkeypatch.setenv("SBATCH_JOB_NAME", "stranger")
    async with slurm_run(tmp_path / "w", jobname_prefix="7 |ü$(id)") as xq:
        job = await xq.feed(
            bash('echo "${#XQ_LONG} ${#XQ_OWN} ${SLURM_NTASKS-none}"'),
            envs={"XQ_OWN": "y" * 100_000},
        )
    assert job.stdout_file.read_text() in ("100000 100000 none\n", "100000 100000 1\n")


async def test_without_export_a_job_has_what_is_its_own(slurm, tmp_path, monkeypatch):
    """Slurm gives such a job HOME, PATH and USER, and nothing else of the driver's."""
    monkeypatch.setenv("XQ_DRIVERS", "x")
    async with slurm_run(tmp_path / "w", opts={"export": "NONE"}) as xq:
        script = 'echo "${XQ_DRIVERS-none} ${XQ_OWN-none} ${HOME:+home} $XQUTE_JOB_INDEX"'
        jobs = [await xq.feed(bash(script), envs={"XQ_OWN": "y"}) for _ in range(2)]
    assert [job.stdout_file.read_text() for job in jobs] == ["none y home 0\n", "none y home 1\n"]


async def test_what_is_larger_than_a_script_may_be_is_not_in_the_script(slurm, tmp_path):
    """Slurm refuses one of more than 4 MiB."""
    large = f"export XQ_LARGE=large\n#{'x' * 6_000_000}"
    async with slurm_run(tmp_path / "w", opts={"prescript": large}) as xq:
        jobs = [await xq.feed(bash('echo "$XQ_LARGE"')) for _ in range(2)]
        await jobs[1].wait()
        jobs.append(await xq.feed(bash('echo "$XQ_LARGE"')))
    assert [job.stdout_file.read_text() for job in jobs] == ["large\n"] * 3


async def test_what_the_user_has_set_for_slurms_programs_hides_no_job(slurm, tmp_path, monkeypatch):
    filters = {"SQUEUE_PARTITION": "short", "SQUEUE_NAMES": "other", "SCANCEL_PARTITION": "short"}
    for name, value in filters.items():
        monkeypatch.setenv(name, value)
    async with slurm_run(tmp_path / "w", opts={"recheck_interval": 1.0}) as xq:
        xq.scheduler.kill_grace_s = 1.0
        job = await xq.feed(bash('echo "$SQUEUE_PARTITION"; exec sleep 300'))
        await until(lambda: job.status.name == "RUNNING", "it runs", 60)
        assert await xq.scheduler.job_is_running(job)
        await xq.scheduler.kill_job_and_update_status(job)
    assert str(job.outcome) == "killed"
    assert job.stdout_file.read_text() == "short\n", "its environment is the driver's"
    for name in filters:
        monkeypatch.delenv(name)
    await until(lambda: slurm.names() == [], "Slurm has ended it, too", 30)


async def test_what_a_job_asks_for_goes_before_the_environment(slurm, tmp_path, monkeypatch):
    """Sbatch itself does it the other way round."""
    for name, value in {"TIMELIMIT": "1", "PARTITION": "short", "MEM_PER_CPU": "1"}.items():
        monkeypatch.setenv(f"SBATCH_{name}", value)
    own = {"walltime_s": 600, "memory_mib": 20, "queue": "main"}
    asked = 'squeue -h -j "$SLURM_JOB_ID" -O "TimeLimit:|,Partition:|,MinMemory:|" | sort -u'
    async with slurm_run(tmp_path / "w") as xq:
        jobs = [await xq.feed(bash(asked), resources=own) for _ in range(2)]
        alone = await xq.feed(bash(asked), resources=own, scheduler_opts={"comment": "x"})
        says_nothing = await xq.feed(bash(asked))
    for job in (*jobs, alone):
        assert job.stdout_file.read_text() == "10:00|main|20M|\n"
    assert says_nothing.stdout_file.read_text() == "1:00|short|1M|\n"


async def test_a_workdir_that_the_nodes_do_not_see_is_told(slurm, tmp_path):
    opts = {"mounted_workdir": "/no/such/folder/on/the/nodes", "recheck_interval": 1.0}
    async with slurm_run(tmp_path / "w", opts=opts) as xq:
        jobs = [await xq.feed(bash("exit 0")) for _ in range(2)]
        await jobs[1].wait()
        alone = await xq.feed(bash("exit 0"))
    for job in (*jobs, alone):
        assert (str(job.outcome), str(job.cause)) == ("failed", "SETUP")
        assert "/no/such/folder/on/the/nodes" in job.reason
