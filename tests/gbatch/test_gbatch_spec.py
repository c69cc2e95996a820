"""The Batch job as a message: completed, never overwritten, and what the SDK's types say of it."""

from __future__ import annotations

import json

import pytest
from google.cloud import batch_v1

from xqute.errors import ConfigError
from xqute_gbatch import GbatchScheduler
from xqute_gbatch.client import check_message


def make(**keywords):
    return GbatchScheduler("gs://bucket/run", project="project", location="here", **keywords)


def message_of(scheduler, **attributes):
    job = scheduler.create_job(3, ["echo"])
    for name, value in attributes.items():
        setattr(job, name, value)
    return scheduler.build_message(job)


def checked(scheduler, **attributes):
    """The message as the SDK understands it."""
    return check_message(message_of(scheduler, **attributes))


def test_the_least_there_is():
    job = checked(make())
    [group] = job.task_groups
    [runnable] = group.task_spec.runnables
    assert runnable.script.text == "/bin/bash -p /mnt/disks/xqute_workdir/3/job.wrapped.gbatch"
    [volume] = group.task_spec.volumes
    assert (volume.gcs.remote_path, volume.mount_path) == ("bucket/run", "/mnt/disks/xqute_workdir")
    assert list(volume.mount_options) == ["--implicit-dirs"]
    assert job.logs_policy.destination == batch_v1.LogsPolicy.Destination.CLOUD_LOGGING
    assert job.labels["xqute"] == "true"


def test_labels_carry_the_submission_key():
    scheduler = make()
    job = scheduler.create_job(3, ["echo"])
    job.name = "Align It"
    labels = scheduler.build_message(job)["labels"]
    assert labels["xqute_key"] == scheduler.submission_key(job)
    assert labels["xqute_run"] == scheduler.run_id
    assert labels["name"] == "align-it"


def test_a_container_is_spelled_as_batch_does():
    scheduler = make(image_uri="debian", entrypoint="/bin/sh", commands=["-c", "{lang} {script}"])
    runnable = scheduler.config["taskGroups"][0]["taskSpec"]["runnables"][scheduler.runnable_index]
    assert runnable["container"] == {
        "image_uri": "debian",
        "entrypoint": "/bin/sh",
        "commands": ["-c", "{lang} {script}"],
    }
    container = checked(scheduler).task_groups[0].task_spec.runnables[0].container
    assert container.image_uri == "debian"
    assert list(container.commands) == [
        "-c",
        "/bin/bash /mnt/disks/xqute_workdir/3/job.wrapped.gbatch",
    ]


def test_a_container_runs_bash_unless_told_otherwise():
    container = checked(make(image_uri="debian")).task_groups[0].task_spec.runnables[0].container
    assert container.entrypoint == "/bin/bash"
    assert list(container.commands) == ["-p", "/mnt/disks/xqute_workdir/3/job.wrapped.gbatch"]


SCRIPT = "/mnt/disks/xqute_workdir/3/job.wrapped.gbatch"


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"commands": ["-x"]}, ["-x", SCRIPT]),
        ({"commands": "-x"}, ["-x", SCRIPT]),
        ({"commands": []}, ["-p", SCRIPT]),
        ({"entrypoint": "/bin/sh", "commands": ["-c"]}, ["-c", f"/bin/bash {SCRIPT}"]),
        ({"entrypoint": "/opt/bash"}, ["-p", SCRIPT]),
    ],
)
def test_where_commands_have_no_place_for_the_script_it_comes_last(given, sent):
    scheduler = make(image_uri="debian", **given)
    container = checked(scheduler).task_groups[0].task_spec.runnables[0].container
    assert container.entrypoint == given.get("entrypoint", "/bin/bash")
    assert list(container.commands) == sent


def test_a_container_in_the_config_is_completed_likewise():
    runnable = {"container": {"imageUri": "debian", "commands": ["-x"]}}
    scheduler = make(taskGroups=[{"taskSpec": {"runnables": [runnable]}}])
    container = checked(scheduler).task_groups[0].task_spec.runnables[0].container
    assert container.entrypoint == "/bin/bash"
    assert list(container.commands) == ["-x", SCRIPT]


@pytest.mark.parametrize("nothing", [None, []])
@pytest.mark.parametrize("entrypoint", [{}, {"entrypoint": "/opt/bash"}])
def test_commands_that_say_nothing_in_the_config_are_as_if_not_there(nothing, entrypoint):
    runnable = {"container": {"imageUri": "debian", "commands": nothing, **entrypoint}}
    scheduler = make(taskGroups=[{"taskSpec": {"runnables": [runnable]}}])
    container = checked(scheduler).task_groups[0].task_spec.runnables[0].container
    assert list(container.commands) == ["-p", SCRIPT]


def test_what_is_said_of_an_entrypoint_stays_in_the_config_as_it_is():
    scheduler = make(image_uri="debian", entrypoint="/bin/sh", commands=["-c"])
    runnable = scheduler.config["taskGroups"][0]["taskSpec"]["runnables"][0]
    assert runnable["container"]["commands"] == ["-c"]


def test_commands_without_a_container_are_a_line_for_the_shell():
    text = checked(make(commands=["bash", "-c"])).task_groups[0].task_spec.runnables[0].script.text
    assert text == f"bash -c '/bin/bash {SCRIPT}'"


def test_a_script_that_loses_its_place_later_is_refused_at_submission():
    scheduler = make()
    scheduler.config["taskGroups"][0]["taskSpec"]["runnables"][0]["script"]["text"] = "run"
    with pytest.raises(ConfigError, match="script"):
        message_of(scheduler)
    del scheduler.config["taskGroups"][0]["taskSpec"]["runnables"]
    with pytest.raises(ConfigError, match="runnables"):
        message_of(scheduler)


def test_an_entrypoint_needs_a_container():
    with pytest.raises(ConfigError, match="image_uri"):
        make(entrypoint="/bin/sh")


def test_runnables_are_put_in_order_around_the_job():
    scheduler = make(
        runnables=[
            {"script": {"text": "last"}, "order": 5},
            {"script": "after"},
            {"image_uri": "debian", "commands": ["first"], "order": -2},
            {"script": "before", "order": -1, "alwaysRun": True},
        ]
    )
    assert scheduler.runnable_index == 2
    runnables = checked(scheduler).task_groups[0].task_spec.runnables
    assert list(runnables[0].container.commands) == ["first"]
    assert [runnable.script.text for runnable in runnables[1:]] == [
        "before",
        "/bin/bash -p /mnt/disks/xqute_workdir/3/job.wrapped.gbatch",
        "after",
        "last",
    ]
    assert runnables[1].always_run


def test_what_the_user_says_is_completed_and_never_overwritten():
    theirs = {
        "taskGroups": [
            {
                "taskSpec": {
                    "runnables": [{"script": {"text": "exec {lang} {script}"}}],
                    "volumes": [{"gcs": {"remotePath": "other"}, "mountPath": "/other"}],
                    "computeResource": {"cpuMilli": "500"},
                },
                "parallelism": "1",
            }
        ],
        "allocationPolicy": {"instances": [{"policy": {"machineType": "e2-micro"}}]},
        "logsPolicy": {"destination": "PATH"},
        "labels": {"user": "me"},
    }
    before = json.dumps(theirs)
    scheduler = make(
        **theirs,
        machine_type="n2-standard-2",
        provisioning_model="SPOT",
        resources={"cpus": 4, "memory_mib": 1000},
    )
    job = checked(scheduler)
    assert json.dumps(theirs) == before, "the user's own mapping was changed"
    spec = job.task_groups[0].task_spec
    assert spec.runnables[0].script.text.startswith("exec /bin/bash /mnt/")
    assert [volume.mount_path for volume in spec.volumes] == ["/mnt/disks/xqute_workdir", "/other"]
    assert (spec.compute_resource.cpu_milli, spec.compute_resource.memory_mib) == (500, 1000)
    policy = job.allocation_policy.instances[0].policy
    assert policy.machine_type == "e2-micro"
    assert policy.provisioning_model == batch_v1.AllocationPolicy.ProvisioningModel.SPOT
    assert job.logs_policy.destination == batch_v1.LogsPolicy.Destination.PATH
    assert job.labels["user"] == "me"


def test_a_container_of_the_users_is_completed():
    runnables = [{"container": {"imageUri": "debian"}}]
    scheduler = make(taskGroups=[{"taskSpec": {"runnables": runnables}}])
    container = checked(scheduler).task_groups[0].task_spec.runnables[0].container
    assert (container.image_uri, container.entrypoint) == ("debian", "/bin/bash")


def test_where_the_vms_are_and_whose_rights_they_have():
    job = checked(
        make(
            service_account="a@b",
            network="global/networks/n",
            subnetwork="regions/r/subnetworks/s",
            no_external_ip_address=True,
        )
    )
    assert job.allocation_policy.service_account.email == "a@b"
    [interface] = job.allocation_policy.network.network_interfaces
    assert interface.network == "global/networks/n"
    assert interface.subnetwork == "regions/r/subnetworks/s"
    assert interface.no_external_ip_address


def test_resources_are_translated():
    resources = {
        "cpus": 3,
        "memory_mib": 2048,
        "disk_mib": 10_000,
        "walltime_s": 90,
        "gpus": 2,
        "gpu_type": "nvidia-l4",
    }
    job = checked(make(), resources=resources)
    spec = job.task_groups[0].task_spec
    assert spec.compute_resource.cpu_milli == 3000
    assert spec.compute_resource.boot_disk_mib == 10_000
    assert spec.max_run_duration.seconds == 90
    instance = job.allocation_policy.instances[0]
    [gpu] = instance.policy.accelerators
    assert (gpu.type_, gpu.count) == ("nvidia-l4", 2)
    assert instance.install_gpu_drivers


@pytest.mark.parametrize("seconds", [90, 90.5, 1_209_600, 1_000_000.25])
def test_a_walltime_of_any_length_is_one_that_batch_takes(seconds):
    spec = checked(make(), resources={"walltime_s": seconds}).task_groups[0].task_spec
    assert spec.max_run_duration.total_seconds() == seconds


def test_resources_may_grow_with_the_attempt():
    scheduler = make(resources=lambda attempt, cause: {"memory_mib": 100 << attempt})
    spec = checked(scheduler, trial_count=3).task_groups[0].task_spec
    assert spec.compute_resource.memory_mib == 800


def test_without_resources_batch_decides():
    assert "computeResource" not in message_of(make())["taskGroups"][0]["taskSpec"]


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"taskGroups": [{"taskSpec": {"runnable": []}}]}, "runnable"),
        ({"taskGroup": []}, "taskGroup"),
        ({"allocationPolicy": {"instances": [{"policy": {"machine": "x"}}]}}, "machine"),
        ({"priority": "high"}, "priority"),
    ],
)
def test_what_batch_does_not_know_is_refused_by_name(config, name):
    with pytest.raises(ConfigError, match=name):
        checked(make(**config))


@pytest.mark.parametrize(
    "config",
    [
        {"taskGroups": {}},
        {"taskGroups": ["x"]},
        {"taskGroups": [{"taskSpec": []}]},
        {"taskGroups": [{"taskSpec": {"volumes": {}}}]},
        {"taskGroups": [{"taskSpec": {"runnables": ["x"]}}]},
        {"runnables": {"script": "x"}},
        {"runnables": ["x"]},
    ],
)
def test_parts_of_a_wrong_type_are_type_errors(config):
    with pytest.raises(ConfigError) as refusal:
        make(**config)
    assert isinstance(refusal.value, TypeError)


@pytest.mark.parametrize(
    "group", [{"taskCount": 2}, {"taskCount": "2"}, {"taskSpec": {"maxRetryCount": 1}}]
)
def test_batch_itself_runs_each_job_once(group):
    with pytest.raises(ConfigError, match="must not be over"):
        make(taskGroups=[group])


def test_native_options_of_one_job_go_before_the_schedulers():
    job = checked(make(priority=1), scheduler_opts={"priority": 7})
    assert job.priority == 7
