"""What a run writes is for its user alone: modes, other users, secrets."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

import xqute
from xqute import JobOutcome, Xqute
from xqute.errors import WorkdirError

pytestmark = pytest.mark.usefixtures("job_processes")

NOBODY = 65534

SECRET = "s3cr3t-0f-7h15-t35t"


def modes(folder, pattern="*"):
    """The modes of all that is below a folder, itself included: {path: mode}."""
    paths = [Path(folder), *Path(folder).rglob(pattern)]
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in paths}


@pytest.fixture
def as_nobody():
    """Do something as another user: `as_nobody(program, argument, ...)` tells whether it could."""

    def do(*argv):
        done = subprocess.run(
            [*map(str, argv)],
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            cwd="/",
            umask=0,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode == 0) is not any(
            words in done.stderr for words in ("Permission denied", "not permitted")
        ), done.stderr
        return done.returncode == 0

    return do


@pytest.fixture
def shared():
    """A folder that all may write to, as /tmp."""
    folder = Path(tempfile.mkdtemp(prefix="xqute-shared-", dir="/tmp"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


# --- modes --------------------------------------------------------------------------------------

RUN_WITH_UMASK = """
    import json, os, sys, xqute
    os.umask(int(sys.argv[1], 8))
    xqute.run(
        [["bash", "-c", "umask; exit $((XQUTE_JOB_TRIAL == 0))"], ["no such program"]],
        workdir="a/b/w", error_strategy="retry", num_retries=1,
    )
    print(json.dumps(open("a/b/w/0/job.stdout").read()))
"""


@pytest.mark.parametrize("umask", ["000", "022", "077", "027"])
def test_only_the_user_enters_what_a_run_has_made_whatever_the_umask(start_driver, tmp_path, umask):
    driver = start_driver(RUN_WITH_UMASK, umask)
    assert driver.finish() == f"0{umask}\n", "the command has the umask of its user"
    found = modes(tmp_path / "a")
    folders = {name: mode for name, mode in found.items() if (tmp_path / "a" / name).is_dir()}
    assert {".", "b", "b/w", "b/w/.run", "b/w/.run/owner", "b/w/0", "b/w/0/job.retry/0"} <= set(
        folders
    )
    assert set(folders.values()) == {0o700}


@pytest.mark.parametrize("umask", ["000", "022"])
def test_what_the_driver_writes_nobody_else_could_read_even_in_an_open_folder(
    start_driver, tmp_path, umask
):
    start_driver(RUN_WITH_UMASK, umask).finish()
    found = modes(tmp_path / "a" / "b" / "w")
    written = [
        name
        for name in found
        if name.endswith(("job.wrapped.local", "job.jid")) or ".run/owner/" in name
    ]
    assert len(written) >= 6
    assert {found[name] for name in written} == {0o600}


async def test_what_is_made_in_a_folder_that_is_there_is_private(tmp_path):
    """The workdir keeps its mode; nobody else may write to a job's folder, nor enter `.run`."""
    workdir = tmp_path / "w"
    there = {".": 0o775, "0": 0o777, "1": 0o755, ".run": 0o775, ".run/owner": 0o755}
    for name, mode in there.items():
        (workdir / name).mkdir(parents=True, exist_ok=True)
        (workdir / name).chmod(mode)
    xq = Xqute(workdir=workdir)
    for _ in range(3):
        await xq.put("true")
    await xq.run_until_complete()
    found = modes(workdir)
    expected = {".": 0o775, "0": 0o755, "1": 0o755, "2": 0o700, ".run": 0o700, ".run/owner": 0o755}
    assert {name: found[name] for name in expected} == expected


def test_a_folder_in_which_none_can_be_made_is_left_as_it_is(tmp_path, monkeypatch):
    """As /proc, which says of every new folder in it that there is no such file."""
    made = []

    def mkdir(path, mode):
        made.append(path)
        raise FileExistsError(path) if path == str(tmp_path) else FileNotFoundError(path)

    tmp_path.chmod(0o777)
    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(WorkdirError, match="cannot be used"):
        xqute.run(["true"], workdir=tmp_path / "w")
    assert len(made) < 10
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o777


@pytest.mark.needs(root=True)
async def test_another_user_can_neither_read_nor_list_nor_change_anything(shared, as_nobody):
    workdir = shared / "w"
    workdir.mkdir(mode=0o755)
    xq = Xqute(workdir=workdir)
    job = await xq.feed(["bash", "-c", "echo $TOKEN"], {"TOKEN": SECRET})
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == f"{SECRET}\n"
    assert as_nobody("ls", workdir)  # it was there, and is its user's business
    for path in workdir.rglob("*"):
        assert not as_nobody("ls" if path.is_dir() else "cat", path)
        assert not as_nobody("touch", path / "x" if path.is_dir() else path)
        assert not as_nobody("mv", "-T", path, f"{path}.x")


# --- what others have left there ----------------------------------------------------------------


@pytest.mark.needs(root=True)
@pytest.mark.parametrize("name", [".run", ".run/owner", ".run/events", "0"])
@pytest.mark.parametrize("what", ["folder", "link"])
async def test_a_folder_of_somebody_else_where_ours_should_be_is_refused(
    tmp_path, process_scheduler, name, what
):
    workdir, target = tmp_path / "w", tmp_path / "target"
    target.mkdir(mode=0o755)
    path = workdir / name
    path.parent.mkdir(parents=True)
    if what == "folder":
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
    else:
        path.symlink_to(target)
    xq = Xqute(process_scheduler, workdir=workdir)  # one that leaves events
    with pytest.raises(WorkdirError, match="user nobody" if what == "folder" else "symbolic link"):
        await xq.put("true")
    assert list(target.iterdir()) == []
    await xq.run_until_complete()


async def test_a_link_to_a_folder_of_ones_own_is_no_folder_for_a_job(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "w" / "0").symlink_to(tmp_path / "target")
    xq = Xqute(workdir=tmp_path / "w")
    with pytest.raises(WorkdirError, match="symbolic link"):
        await xq.put("true")
    assert list((tmp_path / "target").iterdir()) == []
    await xq.run_until_complete()


@pytest.mark.needs(root=True)
@pytest.mark.parametrize("where", ["w", "planted/w", "planted/deep/w"])
@pytest.mark.parametrize("what", ["folder", "link"])
def test_in_a_shared_folder_what_others_have_made_is_not_used(
    shared, tmp_path, as_nobody, where, what
):
    """As /tmp/.xqute, made by somebody who waits for a run in /tmp."""
    planted = shared / where.split("/")[0]
    target = tmp_path / "target"
    target.mkdir()
    if what == "folder":
        assert as_nobody("mkdir", "-p", planted / "deep")
    else:
        assert as_nobody("ln", "-s", target, planted)
    with pytest.raises(WorkdirError, match=rf"cannot be used.*user nobody.*{planted}"):
        xqute.run(["true"], workdir=shared / where)
    assert list(target.iterdir()) == []


@pytest.mark.needs(root=True)
@pytest.mark.parametrize("what", ["folder", "link"])
async def test_nor_if_they_have_made_it_just_now(shared, tmp_path, as_nobody, what):
    target = tmp_path / "target"
    target.mkdir()
    xq = Xqute(workdir=shared / "w")
    assert as_nobody(*(["mkdir"] if what == "folder" else ["ln", "-s", target]), shared / "w")
    with pytest.raises(WorkdirError, match=rf"cannot be used.*user nobody.*{shared}/w"):
        await xq.put("true")
    assert list(target.iterdir()) == []
    await xq.run_until_complete()


async def test_what_is_ones_own_in_a_shared_folder_is_used(shared):
    (shared / "mine").mkdir()
    (shared / "link").symlink_to(shared / "mine")
    for workdir in (shared / "mine" / "w", shared / "link" / "v", shared / "new"):
        xq = Xqute(workdir=workdir)
        job = await xq.put("true")
        await xq.run_until_complete()
        assert job.outcome is JobOutcome.SUCCEEDED


def test_a_file_system_that_gives_files_another_owner_is_no_reason_to_refuse(tmp_path, monkeypatch):
    """As a file server does that takes root for nobody, or a folder shared with a container."""
    xqute.run(["true"], workdir=tmp_path / "w")
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    (job,) = xqute.run(["true"], workdir=tmp_path / "w")
    assert job.outcome is JobOutcome.SUCCEEDED


def test_one_that_knows_no_modes_is_none_either(tmp_path, monkeypatch):
    def chmod(path, mode):
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / "w" / "0").mkdir(parents=True)
    (tmp_path / "w" / "0").chmod(0o777)
    monkeypatch.setattr(os, "chmod", chmod)
    (job,) = xqute.run(["true"], workdir=tmp_path / "w")
    assert job.outcome is JobOutcome.SUCCEEDED


FILES = ["job.wrapped.local", "job.stdout", "job.stderr", "job.status", "job.rc", "job.jid"]


async def test_links_in_the_place_of_the_files_of_a_job_are_not_followed(tmp_path):
    folder, victim = tmp_path / "w" / "0", tmp_path / "victim"
    folder.mkdir(parents=True)
    victim.write_text("untouched")
    for name in FILES:
        (folder / name).symlink_to(victim)
    xq = Xqute(workdir=tmp_path / "w")
    job = await xq.put("echo hi")
    await xq.run_until_complete()
    assert (job.rc, victim.read_text()) == (0, "untouched")
    assert job.stdout_file.read_text() == "hi\n"
    assert not any((folder / name).is_symlink() for name in FILES)


async def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    (tmp_path / "w" / ".run" / "owner").mkdir(parents=True)
    (tmp_path / "w" / ".run" / "owner" / "flock").symlink_to(victim)
    xq = Xqute(workdir=tmp_path / "w")
    with pytest.raises(WorkdirError):
        await xq.put("true")
    assert not victim.exists()


# --- secrets ------------------------------------------------------------------------------------


def all_command_lines():
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it is gone
            lines.append(path.read_bytes())
    assert any(b"job.wrapped.local" in line for line in lines)
    return b"".join(lines)


async def test_no_value_of_a_variable_is_seen_in_argv_in_the_log_or_in_a_name(
    tmp_path, gate, until, caplog, job_processes
):
    caplog.set_level(logging.DEBUG)
    xq = Xqute(workdir=tmp_path / "w", error_strategy="retry", num_retries=1)
    command = gate.command('[[ $TOKEN == s3* ]] && echo "${#TOKEN}"; exit 3')
    job = await xq.feed(command, {"TOKEN": SECRET}, name="a job")
    await until(job.status_file.exists)
    pids = await until(job_processes)
    assert pids
    assert SECRET.encode() not in all_command_lines()
    gate.open()
    await xq.run_until_complete()
    assert job.trial_count == 1
    assert job.stdout_file.read_text() == f"{len(SECRET)}\n"
    assert SECRET not in caplog.text + repr(job) + repr(xq) + job.reason
    names = [str(path) for path in (tmp_path / "w").rglob("*")]
    assert not any(SECRET in name for name in names)
    holders = [path for path in map(Path, names) if path.is_file() and SECRET in path.read_text()]
    assert {path.name for path in holders} == {"job.wrapped.local"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holders} == {0o600}


@pytest.mark.parametrize("value", [f"{SECRET}\0", f"{SECRET}\ud800", SECRET * 10000])
async def test_an_error_about_a_variable_does_not_tell_its_value(tmp_path, value):
    xq = Xqute(workdir=tmp_path / "w")
    with pytest.raises(xqute.InvalidJobError) as caught:
        await xq.feed("true", {"TOKEN": value})
    assert "TOKEN" in str(caught.value)
    assert SECRET not in str(caught.value)
    await xq.run_until_complete()
