"""`Job`: status, exit code, native id, and cleaning, with and without a run around it."""

from __future__ import annotations

import os

import pytest

from xqute import Job, JobOutcome, JobStatus, Xqute

pytestmark = pytest.mark.usefixtures("job_processes")


# --- status, rc, jid ----------------------------------------------------------------------------


def test_status_starts_init_whatever_lies_in_the_folder(tmp_path):
    folder = tmp_path / "0"
    folder.mkdir()
    (folder / "job.status").write_text("6")
    assert Job(0, "true", tmp_path).status == JobStatus.INIT


def test_without_an_engine_status_reads_the_file_once_submitted(tmp_path):
    job = Job(0, "true", tmp_path)
    job.status_file.write_text("4")
    assert job.status == JobStatus.INIT
    job.status = JobStatus.SUBMITTED
    assert job.status == JobStatus.RUNNING
    job.status_file.write_text("7")
    assert job.status == JobStatus.FAILED


def test_an_empty_status_file_means_not_yet(tmp_path):
    job = Job(0, "true", tmp_path)
    job.status = JobStatus.SUBMITTED
    job.status_file.write_text("")
    assert job.status == JobStatus.SUBMITTED


@pytest.mark.parametrize("garbage", ["x", "99", "-1", "6.0", "\udcff", "6 7"])
def test_garbage_in_the_status_file_is_no_status(tmp_path, garbage):
    job = Job(0, "true", tmp_path)
    job.status = JobStatus.SUBMITTED
    job.status_file.write_bytes(os.fsencode(garbage))
    assert job.status == JobStatus.SUBMITTED


def test_a_status_never_goes_back(tmp_path):
    job = Job(0, "true", tmp_path)
    job.status = JobStatus.SUBMITTED
    job.status_file.write_text("6")
    assert job.status == JobStatus.FINISHED
    job.status_file.write_text("4")
    assert job.status == JobStatus.FINISHED


def test_prev_status_is_the_one_before(tmp_path):
    job = Job(0, "true", tmp_path)
    job.status = JobStatus.QUEUED
    assert (job.prev_status, job.status) == (JobStatus.INIT, JobStatus.QUEUED)
    job.status = JobStatus.SUBMITTED
    job.status = JobStatus.SUBMITTED
    assert (job.prev_status, job.status) == (JobStatus.QUEUED, JobStatus.SUBMITTED)


def test_a_status_may_be_set_by_number_and_must_be_one(tmp_path):
    job = Job(0, "true", tmp_path)
    job.status = 6
    assert job.status is JobStatus.FINISHED
    with pytest.raises(ValueError, match="42"):
        job.status = 42
    assert job.status is JobStatus.FINISHED


def test_rc_reads_the_file_whenever_it_is_there(tmp_path):
    job = Job(0, "true", tmp_path)
    assert job.rc == -1
    job.rc_file.write_text("17")
    assert job.rc == 17
    job.rc_file.write_text("0\n")
    assert job.rc == 0
    job.rc_file.unlink()
    assert job.rc == -1


@pytest.mark.parametrize("text", ["", "abc", "1 2"])
def test_an_rc_file_without_a_number_is_none_yet(tmp_path, text):
    job = Job(0, "true", tmp_path)
    job.rc_file.write_text(text)
    assert job.rc == -1


async def test_before_put_rc_is_that_of_a_previous_run(tmp_path):
    first = Xqute(workdir=tmp_path)
    await first.put(["bash", "-c", "exit 9"])
    await first.run_until_complete()
    second = Xqute(workdir=tmp_path)
    job = second.scheduler.create_job(0, "true")
    assert job.rc == 9
    assert job.status == JobStatus.INIT
    await second.put(job)
    await second.run_until_complete()
    assert (job.rc, job.outcome) == (0, JobOutcome.SUCCEEDED)


def test_setting_jid_writes_the_jid_file(tmp_path):
    job = Job(0, "true", tmp_path)
    job.jid = 123
    assert job.jid_file.read_text().strip() == "123"
    job.jid = "abc.7@host"
    assert job.jid_file.read_text().strip() == "abc.7@host"
    assert job.jid == "abc.7@host"


# --- clean --------------------------------------------------------------------------------------


def _fill(job):
    for name in ("stdout", "stderr", "status", "rc", "jid"):
        (job.metadir / f"job.{name}").write_text("6")


def test_clean_removes_what_an_earlier_run_left(tmp_path):
    Job(0, "true", tmp_path)
    job = Job(0, "true", tmp_path)
    _fill(job)
    job.clean()
    assert [p.name for p in job.metadir.iterdir() if p.name != "job.retry"] == []
    assert (job.rc, job.jid) == (-1, None)


def test_clean_leaves_the_files_of_the_user(tmp_path):
    job = Job(0, "true", tmp_path)
    _fill(job)
    (job.metadir / "output").mkdir()
    (job.metadir / "output" / "result.txt").write_text("mine")
    job.clean()
    assert (job.metadir / "output" / "result.txt").read_text() == "mine"


def test_a_file_that_is_replaced_is_whole_for_whoever_opens_it_meanwhile(tmp_path, monkeypatch):
    """An attempt may be submitted twice: bash opens its script while it is written again."""
    job = Job(0, "true", tmp_path)
    job.write_file("job.wrapped.local", "old" * 99)
    path = job.metadir / "job.wrapped.local"
    seen = []

    def looking_first(do):
        def look_and_do(*args):
            seen.append(path.read_text())
            return do(*args)

        return look_and_do

    for name in ("open", "write", "rename", "unlink"):
        monkeypatch.setattr(os, name, looking_first(getattr(os, name)))
    job.write_file("job.wrapped.local", "new" * 99)
    assert seen
    assert set(seen) == {"old" * 99}
    assert path.read_text() == "new" * 99
    assert [each.name for each in job.metadir.iterdir()] == ["job.wrapped.local"]


def test_clean_for_a_retry_keeps_the_files_under_the_trial_count(tmp_path):
    job = Job(0, "true", tmp_path)
    _fill(job)
    job.clean(retry=True)
    assert sorted(path.name for path in (job.retry_dir / "0").iterdir()) == [
        "job.jid",
        "job.rc",
        "job.status",
        "job.stderr",
        "job.stdout",
    ]
    assert not job.rc_file.exists()


def test_clean_of_a_job_that_wrote_itself_works_on_a_new_folder_too(tmp_path):
    job = Job(0, "true", tmp_path)
    _fill(job)
    job.clean()
    assert not job.rc_file.exists()


def test_claims_that_a_killed_driver_was_about_to_remove_are_removed_by_the_next(
    tmp_path, monkeypatch
):
    job = Job(0, "true", tmp_path)
    for name in ("job.start.a-0", "job.end.a-0"):
        job.write_file(name, "")
    unlink = os.unlink

    def dies_after(path):
        unlink(path)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", dies_after)
        with pytest.raises(KeyboardInterrupt):
            job.clean()
    job.clean()
    assert os.listdir(job.metadir) == []
