"""What is asked of sbatch: native options, portable resources, and who goes before whom."""

from __future__ import annotations

import pytest

from xqute import ConfigError, Resources, SubmitError
from xqute_slurm import SlurmScheduler
from xqute_slurm.options import build_head, build_options, map_resources, overriding


def lines(tmp_path, job=None, **keywords):
    scheduler = SlurmScheduler(tmp_path, **keywords)
    made = scheduler.create_job(0, "true")
    for name, value in (job or {}).items():
        setattr(made, name, value)
    return scheduler.jobcmd_shebang(made).splitlines()


def test_native_options_are_lines_of_the_script(tmp_path):
    head = lines(tmp_path, p="main", mem="4G", cpus_per_task=2, exclusive=True, comment='a "b" \\c')
    assert head[0].startswith("#!/bin/bash")
    assert head[1].startswith("#SBATCH --job-name=slurm.xq-")
    assert head[2:] == [
        "#SBATCH --no-requeue",
        "#SBATCH --output=/dev/null",
        "#SBATCH -p main",
        "#SBATCH --mem=4G",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --exclusive",
        '#SBATCH --comment="a \\"b\\" \\\\c"',
    ]


def test_options_that_are_false_or_none_are_left_out(tmp_path):
    assert len(lines(tmp_path, exclusive=False, mem=None)) == 4


def test_whoever_asks_for_requeue_has_it(tmp_path):
    assert "#SBATCH --requeue" in lines(tmp_path, requeue=True)
    assert "#SBATCH --no-requeue" not in lines(tmp_path, requeue=True)
    own = lines(tmp_path, requeue=True, job={"scheduler_opts": {"requeue": False}})
    assert "#SBATCH --no-requeue" in own
    assert "#SBATCH --requeue" not in own


def test_a_job_takes_back_what_the_scheduler_says(tmp_path):
    own = {"hold": False, "mem": None, "partition": None, "output": None, "requeue": None}
    said = {"H": True, "mem": "4G", "p": "main", "qos": "low", "output": "x", "requeue": True}
    head = lines(tmp_path, job={"scheduler_opts": own}, **said)
    assert head[2:] == [
        "#SBATCH --no-requeue",
        "#SBATCH --output=/dev/null",
        "#SBATCH --qos=low",
    ]
    scheduler = SlurmScheduler(tmp_path, requeue=True)
    job = scheduler.create_job(0, "true")
    assert scheduler.may_restart(job)
    job.scheduler_opts = own
    assert not scheduler.may_restart(job)


def test_both_names_of_an_option_are_one_option():
    assert build_options({"partition": "a"}, {"p": "b"})[2:] == ("-p b",)
    assert build_options({"output": "x"})[1:] == ("--output=x",)


def test_resources_are_options():
    assert map_resources(Resources()) == {}
    everything = Resources(
        cpus=4,
        memory_mib=1000,
        gpus=2,
        gpu_type="a100",
        walltime_s=90061.5,
        disk_mib=7,
        queue="long",
        account="lab",
        constraint="ib&ssd",
    )
    assert map_resources(everything) == {
        "cpus-per-task": 4,
        "mem": "1000M",
        "gpus": "a100:2",
        "time": "1-01:01:02",
        "tmp": "7M",
        "partition": "long",
        "account": "lab",
        "constraint": "ib&ssd",
    }
    two = map_resources(Resources(nodes=2, cpus=5, memory_mib=1001))
    assert two == {"nodes": 2, "ntasks": 2, "cpus-per-task": 3, "mem": "501M"}


def test_what_a_job_says_goes_before_what_the_scheduler_says(tmp_path):
    def options(**job):
        head = lines(tmp_path, job, resources={"cpus": 2, "queue": "main"}, mem="1G", p="short")
        return set(head[4:])

    assert options() == {"#SBATCH --cpus-per-task=2", "#SBATCH --mem=1G", "#SBATCH -p short"}
    assert "#SBATCH --mem=9M" in options(resources={"memory_mib": 9})
    assert "#SBATCH -p short" in options(resources={"memory_mib": 9})
    assert "#SBATCH --partition=long" in options(resources={"queue": "long"})
    own = options(resources={"queue": "long"}, scheduler_opts={"p": "mine"})
    assert "#SBATCH -p mine" in own


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"array": "0-3"}, "array_size"),
        ({"J": "name"}, "jobname_prefix"),
        ({"wrap": "true"}, "scripts"),
        ({"D": "/data"}, "see cwd"),
        ({"comment": "a\nb"}, "one line"),
        ({"comment": ["a", "b"]}, "text or a number"),
        ({"mem ": 1}, "'mem '"),
        ({"Mem": 1}, "'Mem'"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(tmp_path, option, named):
    with pytest.raises(ConfigError, match=named):
        SlurmScheduler(tmp_path, **option)


def test_a_warning_before_the_end_goes_to_the_script(tmp_path):
    head = lines(tmp_path, signal_before_end_s=30)
    assert "#SBATCH --signal=B:USR1@30" in head
    with pytest.raises(ConfigError, match="signal"):
        lines(tmp_path, signal_before_end_s=30, signal="USR2@10")


@pytest.mark.parametrize("prefix", ["a b", "ü|ö", "7up", "-x", "x" * 300, "a.b", "$(id)"])
def test_names_are_tame_whatever_the_prefix(tmp_path, prefix):
    scheduler = SlurmScheduler(tmp_path, jobname_prefix=prefix)
    key = scheduler.submission_key(scheduler.create_job(3, "true"))
    name = scheduler.submission_name(key)
    assert scheduler.key_in(name) == key
    assert name.isascii()
    assert not set(name) & set(" |$()'\"\\/")
    assert name[0].isalpha()
    assert len(name) < 100


async def test_equal_jobs_go_together_in_order(tmp_path):
    scheduler = SlurmScheduler(tmp_path, array_size=3)
    jobs = [scheduler.create_job(index, "true") for index in range(9)]
    jobs[1].resources = {"cpus": 4}
    jobs[2].trial_count = 1
    jobs[3].scheduler_opts = {"mem": "1G", "p": "odd\n"}
    plans = scheduler.plan_submissions(jobs)
    groups = [[job.index for job in plan.jobs] for plan in plans]
    assert groups == [[0, 4, 5], [6, 7, 8], [1], [2], [3]]
    assert len({plan.key for plan in plans}) == len(plans)
    assert [plan.key for plan in plans[2:4]] == [scheduler.submission_key(j) for j in jobs[1:3]]


def test_what_goes_before_a_script_is_known_by_its_options():
    asked = map_resources(Resources(walltime_s=60, memory_mib=9, gpus=1, queue="main"))
    head = build_head(
        "#!/bin/bash", build_options(asked, {"q": "low", "A": "lab"}), "x", None, None
    )
    found = overriding(f"{head}\n\n#SBATCH --reservation=not-the-head's\n")
    named = ("TIMELIMIT", "MEM_PER_NODE", "MEM_PER_CPU", "GPUS", "GPUS_PER_NODE", "PARTITION")
    assert {f"SBATCH_{name}" for name in (*named, "QOS", "ACCOUNT")} <= found
    assert not {"SBATCH_RESERVATION", "SBATCH_CONSTRAINT", "SBATCH_EXPORT"} & found


async def test_a_program_that_is_assigned_is_the_one_that_is_run(tmp_path):
    scheduler = SlurmScheduler(tmp_path, sbatch="/no/sbatch")
    assert (scheduler.sbatch, scheduler.squeue) == ("/no/sbatch", "squeue")
    scheduler.sbatch = "/other/sbatch"
    with pytest.raises(SubmitError, match="/other/sbatch"):
        await scheduler.submit_job(scheduler.create_job(0, "true"))
