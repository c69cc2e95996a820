"""The mount that stands for gcsfuse behaves as that is documented, and the wrapper on several."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xqute import _clouds, _protocol, wrapper

pytestmark = pytest.mark.needs("fusermount3", root=True)

_PROGRAM = Path(__file__).resolve().parents[1] / "services" / "gbatch" / "bucket_mount.py"


@pytest.fixture
def mount(store_url, tmp_path):
    """Mount a folder of the bucket; each time as another machine would."""
    mounted = []

    def start(folder, *options):
        place = tmp_path / f"mount{len(mounted)}"
        place.mkdir()
        remote = folder.removeprefix("gs://")
        process = subprocess.Popen(
            [sys.executable, _PROGRAM, store_url, remote, place, "--implicit-dirs", *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        mounted.append((place, process))
        assert process.stdout.readline() == "mounted\n"
        return place

    yield start
    for place, process in mounted:
        subprocess.run(["umount", place], check=False)
        process.wait(20)
        process.stdout.close()


def test_a_redirection_shows_an_empty_object_first(make_workdir, mount):
    folder = make_workdir()
    place = mount(folder)
    with (place / "file").open("wb", buffering=0) as file:
        os.close(os.dup(file.fileno()))
        assert _clouds.get(f"{folder}/file") == b""
        file.write(b"whole")
        assert _clouds.get(f"{folder}/file") == b""
    assert _clouds.get(f"{folder}/file") == b"whole"


def test_who_is_second_to_create_learns_it_when_closing(make_workdir, mount):
    folder = make_workdir()
    first, second = mount(folder), mount(folder)
    one = os.open(first / "claim", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    two = os.open(second / "claim", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(one, b"one")
    os.write(two, b"two")
    os.close(one)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        os.close(two)
    assert _clouds.get(f"{folder}/claim") == b"one"


def test_what_is_known_of_a_name_is_believed_for_a_while(make_workdir, mount):
    folder = make_workdir()
    place = mount(folder, "--stat-ttl=60")
    assert not (place / "late").exists()
    _clouds.put(f"{folder}/late", b"x")
    assert not (place / "late").exists()
    assert (mount(folder) / "late").read_bytes() == b"x"


def test_a_mount_that_writes_late_writes_the_last_file_first(make_workdir, mount):
    folder = make_workdir()
    place = mount(folder, "--write-back=0.3")
    for name in ("first", "second"):
        (place / name).write_bytes(b"x")
    assert sorted(path.name for path in place.iterdir()) == ["first", "second"]
    assert _clouds.names(folder) == []
    deadline_s = time.monotonic() + 20
    while not (names := _clouds.names(folder)) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert "second" in names
    subprocess.run(["umount", place], check=True)
    while "first" not in _clouds.names(folder) and time.monotonic() < deadline_s:
        time.sleep(0.001)
    assert _clouds.get(f"{folder}/first") == b"x"


def script_of(place, tag="0123abcd-0"):
    return wrapper.render(
        {
            "parameters": wrapper.build_parameters(
                index=0, attempt=0, directory=str(place), tag=tag, spool=str(place), upload_s=5
            ),
            "cmd": wrapper.quote_command(["bash", "-c", 'echo run >>"$0"', str(place / "runs")]),
        }
    )


@pytest.mark.parametrize("ttl", ["0", "60"])
def test_of_many_machines_that_start_one_attempt_one_runs_it(make_workdir, mount, tmp_path, ttl):
    folder = make_workdir()
    _clouds.put(f"{folder}/here", b"")
    places = [mount(folder, f"--stat-ttl={ttl}") for _ in range(4)]
    for place in places:
        assert not (place / "job.start.0123abcd-0").exists()  # and believes so for `ttl` seconds
    processes = [
        subprocess.Popen(["bash", "-p", "-c", script_of(place)], stdin=subprocess.DEVNULL)
        for place in places
    ]
    codes = sorted(process.wait(60) for process in processes)
    assert codes == [0, 121, 121, 121]
    assert _clouds.get(f"{folder}/runs") == b"run\n"
    assert _protocol.read_end_record(folder, "0123abcd-0") == (0, 6, "")


def test_an_attempt_that_is_revoked_elsewhere_does_not_run(make_workdir, mount):
    folder = make_workdir()
    _clouds.put(f"{folder}/here", b"")
    place = mount(folder, "--stat-ttl=60")
    assert not (place / "job.start.0123abcd-0").exists()
    assert _protocol.revoke_start(folder, "0123abcd-0", "driver")
    done = subprocess.run(
        ["bash", "-p", "-c", script_of(place)], stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 121
    assert _clouds.get(f"{folder}/runs") is None
