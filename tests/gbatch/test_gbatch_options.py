"""What a user may say to gbatch, and what is refused: before anything is started."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xqute.errors import ConfigError
from xqute.path import SpecPath
from xqute.resources import Resources
from xqute.schedulers import get_scheduler
from xqute_gbatch import DEFAULT_MOUNTED_ROOT, GbatchScheduler
from xqute_gbatch.options import (
    Mount,
    build_job_id,
    check_labels,
    check_resources,
    parse_mounts,
    sanitize_label,
)

WORKDIR = "gs://bucket/run"


def make(workdir=WORKDIR, **keywords):
    return GbatchScheduler(workdir, **{"project": "project", "location": "here", **keywords})


def spec_of(scheduler):
    return scheduler.config["taskGroups"][0]["taskSpec"]


def test_it_is_found_by_its_name():
    assert get_scheduler("gbatch") is GbatchScheduler
    from xqute.schedulers import gbatch_scheduler

    assert gbatch_scheduler.GbatchScheduler is GbatchScheduler
    assert gbatch_scheduler.DEFAULT_MOUNTED_ROOT == DEFAULT_MOUNTED_ROOT == "/mnt/disks"


def test_no_sdk_is_loaded_before_it_is_needed():
    code = (
        "import sys, xqute_gbatch\n"
        "xqute_gbatch.GbatchScheduler\n"
        "bad = [name for name in sys.modules if name.split('.')[0] in ('google', 'grpc')]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_the_sdk_is_not_loaded_on_the_event_loop(tmp_path):
    code = """
import asyncio, sys, threading
from xqute.errors import SchedulerError
from xqute_gbatch import GbatchScheduler

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "google.cloud.batch_v1":
            print("on the loop" if threading.current_thread() is threading.main_thread() else "")

async def main():
    sys.meta_path.insert(0, Finder)
    try:
        await GbatchScheduler("gs://bucket/run", project="p", location="l").start()
    except SchedulerError:
        print("no credentials")

asyncio.run(main())
"""
    nothing = {"PATH": "/usr/bin:/bin", "NO_GCE_CHECK": "true", "CLOUDSDK_CONFIG": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=nothing, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n") == ["", "no credentials", ""]


@pytest.mark.parametrize("workdir", ["/tmp/run", "s3://bucket/run", "gs://", "gs://bucket", "run"])
def test_a_workdir_that_is_no_folder_of_a_bucket_is_refused(workdir):
    with pytest.raises(ValueError, match="gs://bucket/folder"):
        make(workdir)


def test_jobs_see_the_workdir_mounted():
    scheduler = make()
    assert str(scheduler.workdir.mounted) == "/mnt/disks/xqute_workdir"
    assert spec_of(scheduler)["volumes"][0]["gcs"] == {"remotePath": "bucket/run"}
    assert spec_of(scheduler)["volumes"][0]["mountPath"] == "/mnt/disks/xqute_workdir"
    elsewhere = make(mounted_workdir="/data")
    assert str(elsewhere.workdir.mounted) == "/data"
    assert spec_of(elsewhere)["volumes"][0]["mountPath"] == "/data"


def test_a_slash_at_the_end_of_the_workdir_says_nothing():
    for workdir in (f"{WORKDIR}/", SpecPath(f"{WORKDIR}/", mounted="/data/")):
        scheduler = make(workdir)
        assert str(scheduler.workdir) == WORKDIR
        remote = spec_of(scheduler)["volumes"][0]["gcs"]["remotePath"]
        assert remote == WORKDIR.removeprefix("gs://")


def test_a_workdir_that_is_assigned_later_is_the_one_that_is_mounted():
    scheduler = make()
    scheduler.workdir = "gs://other/place"
    assert spec_of(scheduler)["volumes"][0]["gcs"] == {"remotePath": "other/place"}
    assert str(scheduler.workdir.mounted) == "/mnt/disks/xqute_workdir"


@pytest.mark.parametrize("prefix", ["1a", "a_b", "-a", "a" * 49, "é"])
def test_a_prefix_that_no_job_id_can_begin_with_is_refused(prefix):
    with pytest.raises(ValueError, match="jobname_prefix"):
        make(jobname_prefix=prefix)


@given(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9-]{0,47}", fullmatch=True),
    st.integers(0, 10**7),
    st.integers(0, 99),
)
def test_a_job_id_is_one_that_batch_takes_and_keeps_the_attempt(prefix, index, trial):
    job_id = build_job_id(prefix, f"xq-0123abcd-{index}-{trial}")
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", job_id)
    assert job_id.endswith(f"-0123abcd-{index}-{trial}")


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("gs://b-1/x/y:/data", Mount("b-1/x/y", "/data")),
        ("bucket:/data", Mount("bucket", "/data")),
        ("REF=gs://bucket/ref/", Mount("bucket/ref", "/mnt/disks/REF", "REF")),
    ],
)
def test_mounts_are_understood(text, mount):
    assert parse_mounts(text) == parse_mounts([text]) == [mount]


@pytest.mark.parametrize(
    "text", ["gs://bucket/x", "bucket", "gs://bucket/x:data", ":/x", "A=", "=b"]
)
def test_malformed_mounts_are_refused_by_name(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        make(mount=text)


def test_mounts_of_a_wrong_type_are_refused():
    with pytest.raises(ValueError, match="mount"):
        make(mount=[1])
    with pytest.raises(ValueError, match="volumes"):
        make(volumes=1)


def test_a_named_mount_is_a_variable_and_may_be_where_jobs_work():
    scheduler = make(mount="REF=gs://bucket/ref", volumes=["gs://bucket/x:/x"], volume_as_cwd="REF")
    volumes = spec_of(scheduler)["volumes"]
    assert [volume["mountPath"] for volume in volumes[1:]] == ["/mnt/disks/REF", "/x"]
    assert spec_of(scheduler)["environment"]["variables"] == {"REF": "/mnt/disks/REF"}
    assert scheduler.cwd == "/mnt/disks/REF"
    assert make(mount="gs://bucket/x:/x", volume_as_cwd=True).cwd == "/x"
    with pytest.raises(ValueError, match="volume_as_cwd"):
        make(mount="REF=gs://bucket/ref", volume_as_cwd="OTHER")


@given(st.text())
def test_labels_are_made_to_fit(text):
    assert re.fullmatch(r"[a-z0-9_-]{0,63}", sanitize_label(text))


@pytest.mark.parametrize("labels", [{"A": "x"}, {"": "x"}, {"a" * 64: "x"}, {1: "x"}, ["a"]])
def test_labels_that_cannot_be_are_refused(labels):
    with pytest.raises(ValueError, match=r"[Ll]abel"):
        make(labels=labels)


def test_too_many_labels_are_refused():
    with pytest.raises(ConfigError, match="64"):
        check_labels({f"l{number}": "x" for number in range(65)})


def test_labels_say_whose_jobs_they_are():
    labels = make(
        service_account="Runner@p.iam.gserviceaccount.com", labels={"team": "Blue"}
    ).config["labels"]
    assert labels["xqute"] == "true"
    assert labels["sacct"] == "runner"
    assert labels["team"] == "blue"
    assert labels["user"]


@pytest.mark.parametrize("name", ["project", "location"])
@pytest.mark.parametrize("value", ["", None, 1])
def test_project_and_location_must_be_names(name, value):
    with pytest.raises(ValueError, match=name):
        make(**{name: value})


def test_what_is_deleted_is_one_of_three():
    with pytest.raises(ValueError, match="never, killed, ended"):
        make(delete_jobs="all")


def test_the_old_client_program_is_accepted_with_a_warning():
    with pytest.warns(UserWarning, match="gcloud"):
        make(gcloud="/usr/bin/gcloud")


@pytest.mark.parametrize(
    ("resources", "name"),
    [({"nodes": 2}, "node"), ({"queue": "x"}, "queue"), ({"account": "x"}, "account")],
)
def test_resources_that_batch_does_not_know_are_refused(resources, name):
    with pytest.raises(ConfigError, match=name):
        check_resources(Resources(**resources))
