"""What may be asked for, and what is said to what may not: no engine is needed."""

from __future__ import annotations

import errno
import os
import shlex
import stat

import pytest

from xqute import ConfigError, SpecPath, SubmitError, XquteWarning
from xqute_container import DEFAULT_MOUNTED_WORKDIR, ContainerScheduler
from xqute_container.connect import find_address
from xqute_container.folders import find_host_uid
from xqute_container.options import Runtime, parse_volumes
from xqute_container.parse import (
    Ended,
    Stage,
    explain_refusal,
    parse_ended,
    parse_inspected,
    parse_loaded,
    parse_setup_code,
)
from xqute_container.spec import Spec, build_body, build_exec_argv, build_run_argv

SPEC = Spec(
    key="xq-1-0-0",
    image="lab/tool:1",
    entrypoint=("/usr/bin/env", "bash"),
    arguments=("-p", "/w/0/job"),
    labels={"xqute.key": "xq-1-0-0"},
    volumes=parse_volumes(["/da,ta:/w", "/in:/in:ro"]),
    working_dir="/w",
    user="7:8",
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Programs that are found, and do nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("docker", "podman", "apptainer", "singularity", "nerdctl"):
        path = folder / name
        path.write_text("#!/bin/false\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def make(programs, tmp_path):
    def make(image="lab/tool:1", **keywords):
        return ContainerScheduler(image, workdir=tmp_path / "work", **keywords)

    return make


# --- the constructor -----------------------------------------------------------------------------


def test_a_program_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="Container runtime binary 'no-such-docker' not found"):
        ContainerScheduler("image", bin="no-such-docker", workdir=tmp_path)


def test_attributes_are_as_given(make):
    opts = {"entrypoint": "env bash", "envs": {"N": 1}, "remove": False}
    scheduler = make("docker://lab/tool@sha256:0", **opts)
    assert scheduler.image == "lab/tool@sha256:0"
    assert scheduler.entrypoint == ["env", "bash"]
    assert scheduler.envs == {"N": "1"}
    assert scheduler.bin == "docker"
    assert scheduler.remove is False
    assert scheduler.user == f"{os.getuid()}:{os.getgid()}"
    assert scheduler.bin_args == []
    assert make("docker://lab/tool", bin="apptainer").image == "docker://lab/tool"


def test_the_workdir_is_the_last_volume_wherever_it_is(make, tmp_path):
    scheduler = make(volumes="/usr:/host/usr")
    assert str(scheduler.workdir.mounted) == DEFAULT_MOUNTED_WORKDIR
    assert scheduler.volumes[-1] == f"{tmp_path}/work:{DEFAULT_MOUNTED_WORKDIR}"
    scheduler.volumes.insert(0, "/etc:/host/etc")
    scheduler.workdir = tmp_path / "other"
    assert scheduler.volumes == [
        *("/etc:/host/etc", "/usr:/host/usr"),
        f"{tmp_path}/other:{DEFAULT_MOUNTED_WORKDIR}",
    ]
    scheduler.workdir = SpecPath(tmp_path / "third", mounted="/third")
    assert scheduler.volumes[-1] == f"{tmp_path}/third:/third"
    assert str(make(mounted_workdir="/here").workdir.mounted) == "/here"


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"image": ""}, "image"),
        ({"image": "two words "}, "image"),
        ({"entrypoint": []}, "entrypoint"),
        ({"pull": "often"}, "missing, always, never"),
        ({"user": "a b"}, "user 'a b'"),
        (
            {"user": "0", "bin": "apptainer"} if os.getuid() else {"user": "7", "bin": "apptainer"},
            "Apptainer",
        ),
        ({"envs": {"a-b": 1}}, "a-b"),
        ({"envs": {"UID": 1}}, "UID"),
        ({"volumes": "/data"}, "/data"),
        ({"volumes": ["/data:relative"]}, "relative"),
        ({"volumes": "/data:/x:rx"}, "rx"),
        ({"volumes": ":/x"}, "no host path"),
        ({"volumes": "/data:/"}, "not onto /"),
        ({"volumes": ["/a:/x", "/b:/x"]}, "/x is already taken by '/a:/x'"),
        ({"volumes": ["/a:/x", "/a:/x:ro"]}, "/x is already taken"),
        ({"volumes": ["N=/a:/x", "N=/b:/y"]}, "N already stands for /x"),
        ({"volumes": [f"/a:{DEFAULT_MOUNTED_WORKDIR}"]}, "already taken"),
        ({"volumes": ["UID=/a"]}, "UID"),
        ({"volumes": "/a:/x", "mount": "/b:/y"}, "mount"),
    ],
)
def test_what_makes_no_sense_is_named(make, keywords, words):
    with pytest.raises(ConfigError, match=words):
        make(**keywords)


def test_of_a_workdir_in_a_bucket_the_folder_that_stands_for_it_is_mounted(programs):
    scheduler = ContainerScheduler("image", workdir="gs://bucket/x")
    assert os.path.isabs(scheduler.local_workdir)
    assert scheduler.volumes == [f"{scheduler.local_workdir}:{DEFAULT_MOUNTED_WORKDIR}"]


def test_a_script_that_a_full_disk_refuses_may_be_written_later(make, monkeypatch):
    scheduler = make()
    job = scheduler.create_job(0, ["true"])

    def is_full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", is_full)
    with pytest.raises(SubmitError, match="No space left") as refused:
        scheduler.wrapped_job_script(job)
    assert refused.value.transient


def test_an_unknown_keyword_is_told_with_what_was_meant(make):
    with pytest.warns(XquteWarning, match="did you mean 'volumes'"):
        make(volume="/a:/b")


def test_the_equivalent_command_line_is_the_first_line_of_the_script(make, tmp_path):
    scheduler = make(volumes=["/usr:/host usr:ro"])
    job = scheduler.create_job(0, ["true"])
    line = scheduler.jobcmd_shebang(job)
    words = shlex.split(line.removeprefix("#!"))
    assert words[:3] == ["docker", "run", "--rm"]
    assert words[-2:] == ["lab/tool:1", "/bin/bash"]
    assert "--mount=type=bind,source=/usr,target=/host usr,readonly" in words
    script = scheduler.wrapped_job_script(job)
    assert script.name == "job.wrapped.docker"
    assert script.read_text().splitlines()[0] == line
    apptainer = make("/images/tool.sif", bin="singularity")
    job = apptainer.create_job(1, ["true"])
    assert apptainer.wrapped_job_script(job).name == "job.wrapped.apptainer"
    assert apptainer.jobcmd_shebang(job).startswith("#!singularity exec ")


# --- volumes -------------------------------------------------------------------------------------


def test_volumes_are_understood():
    volumes = parse_volumes(["/a:b:/x", "/a:/x2/", "DATA=/d", "F=/f:/g/h:ro", "/a:/x2", "R=/r:ro"])
    assert [tuple(volume) for volume in volumes] == [
        ("/a:b", "/x", False, ""),
        ("/a", "/x2", False, ""),
        ("/d", "/mnt/disks/DATA", False, "DATA"),
        ("/f", "/g/h", True, "F"),
        ("/r", "/mnt/disks/R", True, "R"),
    ]


def test_a_relative_host_path_is_of_this_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    found = parse_volumes(["data:/x", "~/more:/y"])
    assert [volume.source for volume in found] == [f"{tmp_path}/data", "/home/me/more"]


# --- what is built -------------------------------------------------------------------------------


def test_the_request_says_all_of_the_spec():
    body = build_body(SPEC)
    assert body["Entrypoint"] == ["/usr/bin/env", "bash"]
    assert body["User"] == "7:8"
    host = body["HostConfig"]
    assert host["Init"] is True
    assert "AutoRemove" not in host
    assert [(m["Source"], m["Target"], m["ReadOnly"]) for m in host["Mounts"]] == [
        ("/da,ta", "/w", False),
        ("/in", "/in", True),
    ]
    assert not {"Memory", "NanoCpus", "DeviceRequests", "UsernsMode", "GroupAdd"} & set(host)


def test_the_command_line_says_all_of_the_spec():
    argv = build_run_argv("podman", Runtime.PODMAN, SPEC, ["--network=host"], ["--detach"])
    assert argv[:3] == ["podman", "run", "--detach"]
    assert '--mount=type=bind,"source=/da,ta",target=/w' in argv
    assert argv[-6:] == [
        *("--network=host", "lab/tool:1", "/usr/bin/env", "bash", "-p", "/w/0/job"),
    ]
    argv = build_exec_argv("apptainer", SPEC, [])
    assert {"--cleanenv", "--no-home", "--pwd=/w"} <= set(argv)
    assert argv[-5:] == ["lab/tool:1", "/usr/bin/env", "bash", "-p", "/w/0/job"]


# --- what engines say ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "ended"),
    [
        (
            {"status": "die", "Actor": {"ID": "i", "Attributes": {"name": "k", "exitCode": "3"}}},
            Ended("k", "i", 3),
        ),
        (
            {
                "status": "died",
                "Actor": {"ID": "i", "Attributes": {"name": "k", "containerExitCode": "0"}},
            },
            Ended("k", "i", 0),
        ),
        ({"Status": "died", "Name": "k", "ID": "i", "ContainerExitCode": 9}, Ended("k", "i", 9)),
        ({"Status": "died", "Name": "k", "ID": "i"}, Ended("k", "i", None)),
        ({"status": "start", "Actor": {"ID": "i", "Attributes": {}}}, None),
    ],
)
def test_ends_are_understood_in_every_dialect(said, ended):
    assert parse_ended(said) == ended


def test_an_unknown_state_is_named():
    with pytest.raises(Exception, match="'levitating'"):
        parse_inspected({"Id": "i", "State": {"Status": "levitating"}})
    found = parse_inspected(
        {"Id": "i", "State": {"Status": "exited", "ExitCode": 137, "OOMKilled": True}}
    )
    assert (found.stage, found.exit_code, found.out_of_memory) == (Stage.ENDED, 137, True)


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        (
            "[FATAL tini (7)] exec /b failed: No such file or directory",
            "has no /usr/bin/env",
        ),
        ("crun: executable file `x` not found in $PATH: No such file or directory", "entrypoint="),
        ("exec failed: permission denied", "cannot be executed"),
        ("unable to find user bob: no matching entries in passwd file", "has no user '7:8'"),
        ("could not select device driver", "GPU"),
        ("container-init binary not found on the host", "catatonit"),
        ("invalid mount config: bind source path does not exist: /q", "/da,ta"),
        ("No such image: lab/tool:1", "no image lab/tool:1"),
        ("something new", "something new"),
    ],
)
def test_refusals_are_explained_with_their_remedy(words, meaning):
    told = explain_refusal(words, SPEC, "Docker")
    assert meaning in told
    assert words in told, "the engine's own words are told, too"


def test_an_entrypoint_that_did_not_run_has_the_code_that_a_shell_would_give_it():
    """Podman's init has 1 for all, and Podman's socket 0."""
    assert parse_setup_code("ERROR: failed to exec pid1: No such file or directory", 1) == 127
    assert parse_setup_code("ERROR: failed to exec pid1: Permission denied", 1) == 126
    assert parse_setup_code("exec: permission denied", 0) == 126
    assert parse_setup_code("[FATAL tini (7)] exec /x failed: Permission denied", 126) == 126
    assert parse_setup_code("syntax error", 2) == 2


def test_the_name_of_a_loaded_image_is_read():
    assert parse_loaded("Loaded image: lab/tool:1\n", "f") == "lab/tool:1"
    assert parse_loaded("x\nLoaded image ID: sha256:12\n", "f") == "sha256:12"
    assert parse_loaded("{'stream': 'Loaded image: a/b:1\\n'}", "f") == "a/b:1"
    with pytest.raises(Exception, match="No image came from f"):
        parse_loaded("nothing", "f")


def test_addresses_are_found_where_users_say():
    assert find_address(Runtime.DOCKER, "/x/y.sock") == "unix:///x/y.sock"
    assert find_address(Runtime.DOCKER, "tcp://h:1") == "tcp://h:1"
    assert find_address(Runtime.DOCKER, None, {"DOCKER_HOST": "tcp://h:1"}) == "tcp://h:1"
    assert find_address(Runtime.PODMAN, None, {"DOCKER_HOST": "tcp://h:1"}) is None
    assert find_address(Runtime.PODMAN, None, {"CONTAINER_HOST": "unix:///p"}) == "unix:///p"


def test_users_of_a_rootless_engine_are_known_by_our_range(tmp_path):
    ranges = tmp_path / "subuid"
    ranges.write_text(f"nobody:1:2\n{os.getuid()}:100000:65536\n")
    assert find_host_uid(0, str(ranges)) == os.getuid()
    assert find_host_uid(1234, str(ranges)) == 101233
    assert find_host_uid(1234, str(tmp_path / "none")) is None
