"""Bad input: a clear error that names the thing, at the earliest moment, at no other job's cost."""

from __future__ import annotations

import os
import warnings

import pytest

import xqute
from xqute import ConfigError, InvalidJobError, Job, JobOutcome, Xqute, XquteError, XquteWarning
from xqute.schedulers.local_scheduler import LocalScheduler

pytestmark = pytest.mark.usefixtures("job_processes")


async def _others_still_run(xq, n_fed_before):
    """The refused one is not among the jobs, its index is free, and the run goes on."""
    assert len(xq.jobs) == n_fed_before
    after = await xq.put("true")
    assert after.index == n_fed_before
    await xq.run_until_complete()
    assert {job.outcome for job in xq.jobs} == {JobOutcome.SUCCEEDED}


# --- commands -----------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", ["", "   ", [], (), "# "], ids=repr)
async def test_an_empty_command_is_refused_at_feed(tmp_path, empty):
    xq = Xqute(workdir=tmp_path)
    await xq.put("true")
    if empty == "# ":
        empty = ["", "x"]
    with pytest.raises(InvalidJobError, match=r"(?i)(1.*(empty|command))|((empty|command).*1)"):
        await xq.put(empty)
    await _others_still_run(xq, 1)


async def test_an_empty_command_of_a_job_is_refused_at_feed(tmp_path):
    xq = Xqute(workdir=tmp_path)
    await xq.put("true")
    with pytest.raises(InvalidJobError, match="7"):
        await xq.put(Job(7, (), tmp_path))
    await _others_still_run(xq, 1)


async def test_an_unclosed_quote_is_refused_with_the_command(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match="it's"):
        await xq.put("echo it's")
    await _others_still_run(xq, 0)


@pytest.mark.parametrize("command", [None, 3, b"echo hi", 2.5, {"echo": 1}])
async def test_what_is_no_command_is_refused(tmp_path, command):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(
        (InvalidJobError, TypeError), match=r"(?i)command|None|int|bytes|float|dict"
    ):
        await xq.put(command)
    await _others_still_run(xq, 0)


async def test_a_nul_in_an_argument_is_refused_at_feed(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match="NUL"):
        await xq.put(["echo", "a\0b"])
    await _others_still_run(xq, 0)


async def test_an_argument_over_128_kib_is_refused_at_feed(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match=r"131072|131,072"):
        await xq.put(["echo", "x" * (128 * 1024)])
    job = await xq.put(["bash", "-c", "echo ${#1}", "bash", "x" * (128 * 1024 - 1)])
    await xq.run_until_complete()
    assert job.stdout_file.read_text() == "131071\n"


async def test_the_length_that_counts_is_that_in_bytes(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match="132000"):
        await xq.put(["echo", "ü" * 66000])
    await _others_still_run(xq, 0)


async def test_a_lone_surrogate_that_is_no_byte_is_refused(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match="d800"):
        await xq.put(["echo", "\ud800"])
    await _others_still_run(xq, 0)


# --- environment --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["A-B", "1A", "", "A B", "A=B", "Ä", "A.B", "UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS"],
)
async def test_a_name_that_bash_cannot_export_is_refused_at_feed(tmp_path, name):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError) as caught:
        await xq.put("true", envs={name: "x"})
    assert repr(name) in str(caught.value) or (name and name in str(caught.value))
    await _others_still_run(xq, 0)


async def test_a_nul_in_a_value_is_refused_with_the_name(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match=r"(?s)TOKEN.*NUL"):
        await xq.put("true", envs={"TOKEN": "a\0b"})
    await _others_still_run(xq, 0)


async def test_a_value_over_128_kib_is_refused_with_the_name_but_not_shown(tmp_path):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises(InvalidJobError, match="TOKEN") as caught:
        await xq.put("true", envs={"TOKEN": "secret" * 30000})
    assert "secretsecret" not in str(caught.value)
    await _others_still_run(xq, 0)


# --- jobs and their keywords --------------------------------------------------------------------


@pytest.mark.parametrize("index", [-1, "a", 1.5, None])
async def test_an_index_that_is_none_is_refused(tmp_path, index):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises((XquteError, TypeError), match=f"index.*{index}|{index}.*index"):
        await xq.put(Job(index, "true", tmp_path))


@pytest.mark.parametrize("keyword", [{"timeout": -1}, {"timeout": "soon"}, {"num_retries": -1}])
async def test_a_keyword_of_feed_that_makes_no_sense_is_refused_by_name(tmp_path, keyword):
    xq = Xqute(workdir=tmp_path)
    with pytest.raises((XquteError, TypeError), match=next(iter(keyword))):
        await xq.feed("true", **keyword)
    await _others_still_run(xq, 0)


# --- the run and its scheduler ------------------------------------------------------------------


@pytest.mark.parametrize("forks", [-1, 0, 1.5, "two", None])
async def test_forks_must_be_a_positive_number(tmp_path, forks):
    with pytest.raises((ConfigError, TypeError), match="forks"):
        Xqute(workdir=tmp_path, forks=forks)


@pytest.mark.parametrize(
    "keywords",
    [{"num_retries": -1}, {"submission_batch": -1}, {"error_strategy": "panic"}],
    ids=lambda keywords: next(iter(keywords)),
)
async def test_a_keyword_that_makes_no_sense_is_refused_by_name(tmp_path, keywords):
    with pytest.raises(ConfigError, match=next(iter(keywords))) as caught:
        Xqute(workdir=tmp_path, **keywords)
    assert str(next(iter(keywords.values()))) in str(caught.value)


@pytest.mark.parametrize("keywords", [{"timeout": -1}, {"recheck_interval": -1}], ids=str)
def test_so_is_one_of_the_scheduler(tmp_path, keywords):
    with pytest.raises(ConfigError, match=next(iter(keywords))):
        LocalScheduler(tmp_path, **keywords)


async def test_one_plugin_is_no_list_of_plugins(tmp_path):
    with pytest.raises(ConfigError, match="'-tally'"):
        Xqute(workdir=tmp_path, plugins="-tally")


def test_one_command_is_no_list_of_commands(tmp_path):
    with pytest.raises(InvalidJobError, match="'w'"):
        xqute.run("w", workdir=tmp_path)
    assert list(tmp_path.iterdir()) == []


async def test_a_misspelt_keyword_of_xqute_is_an_error(tmp_path):
    with pytest.raises(TypeError, match="fork"):
        Xqute(workdir=tmp_path, fork=2)


async def test_an_unknown_keyword_to_the_local_scheduler_is_one_warning_with_a_suggestion(tmp_path):
    with pytest.warns(XquteWarning, match="(?s)prescrpt.*prescript") as caught:
        xq = Xqute(workdir=tmp_path, scheduler_opts={"prescrpt": "echo", "qwertyuiop": 1})
    assert len(caught) == 1
    assert "qwertyuiop" in str(caught[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        job = await xq.put("true")
        await xq.run_until_complete()
    assert job.outcome is JobOutcome.SUCCEEDED


# --- commands that cannot be run ----------------------------------------------------------------


async def test_a_command_that_is_not_found_fails_with_127_and_is_named(tmp_path):
    xq = Xqute(workdir=tmp_path)
    jobs = [await xq.put("no-such-command-1 a"), await xq.put("true")]
    await xq.run_until_complete()
    assert [job.rc for job in jobs] == [127, 0]
    assert jobs[0].outcome is JobOutcome.FAILED
    assert "no-such-command-1" in jobs[0].stderr_file.read_text()


async def test_a_command_that_is_not_executable_fails_with_126_and_is_named(tmp_path):
    (tmp_path / "plain.txt").write_text("echo hi")
    xq = Xqute(workdir=tmp_path / "w")
    jobs = [await xq.put([tmp_path / "plain.txt"]), await xq.put([tmp_path]), await xq.put("true")]
    await xq.run_until_complete()
    assert [job.rc for job in jobs] == [126, 126, 0]
    assert "plain.txt" in jobs[0].stderr_file.read_text()


async def test_a_cwd_that_is_not_there_is_named(tmp_path):
    xq = Xqute(workdir=tmp_path)
    jobs = [await xq.feed("touch ran", cwd=tmp_path / "not-there"), await xq.put("true")]
    await xq.run_until_complete()
    assert [job.outcome for job in jobs] == [JobOutcome.FAILED, JobOutcome.SUCCEEDED]
    assert jobs[0].rc != 0
    assert "not-there" in jobs[0].stderr_file.read_text()
    assert jobs[0].cause == "SETUP"


# --- the workdir --------------------------------------------------------------------------------


async def test_a_workdir_that_is_a_file_is_refused_when_the_run_is_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    for workdir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file") as caught:
            Xqute(workdir=workdir)
        assert isinstance(caught.value, XquteError)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.needs("mount", root=True)
async def test_a_workdir_that_is_not_writable_is_refused_when_the_run_is_made(mounted):
    path = mounted("size=64k,ro")
    with pytest.raises(OSError, match=str(path)) as caught:
        Xqute(workdir=path / "w")
    assert isinstance(caught.value, XquteError)


async def test_a_workdir_that_becomes_unusable_is_told_at_feed(tmp_path):
    xq = Xqute(workdir=tmp_path / "w")
    (tmp_path / "w").write_text("in the way")
    with pytest.raises(OSError, match="w") as caught:
        await xq.put("true")
    assert isinstance(caught.value, XquteError)
    os.unlink(tmp_path / "w")
    await _others_still_run(xq, 0)


@pytest.mark.needs("mount", root=True)
@pytest.mark.usefixtures("impatient")
async def test_on_a_full_disk_each_job_tells_its_own_truth(mounted):
    path = mounted("size=512k")
    xq = Xqute(workdir=path)
    before = await xq.put("echo before")
    fills = await xq.put(["dd", "if=/dev/zero", f"of={path}/filler", "bs=1k"])
    writes = await xq.put(["head", "-c", "9000", "/dev/zero"])
    silent = await xq.put("true")
    failing = await xq.put(["bash", "-c", "exit 5"])
    await before.wait()
    await xq.run_until_complete()
    assert before.outcome is JobOutcome.SUCCEEDED
    assert (fills.outcome, fills.rc) == (JobOutcome.FAILED, 1)
    assert "No space" in fills.stderr_file.read_text() or fills.reason
    assert writes.outcome not in (JobOutcome.SUCCEEDED, None)
    for job, rc in ((silent, 0), (failing, 5)):
        if job.outcome is JobOutcome.SUBMIT_FAILED:
            assert "No space left" in job.reason
        else:
            assert (job.rc, job.outcome is JobOutcome.SUCCEEDED) == (rc, rc == 0)
    os.unlink(path / "filler")
    after = await xq.put("echo after")
    await xq.run_until_complete()
    assert (after.outcome, after.stdout_file.read_text()) == (JobOutcome.SUCCEEDED, "after\n")


@pytest.mark.needs("mount", root=True)
@pytest.mark.usefixtures("impatient")
async def test_without_a_free_inode_a_feed_names_the_reason(mounted):
    path = mounted("size=1m,nr_inodes=40")
    xq = Xqute(workdir=path)

    async def feed_many():
        for _ in range(40):
            await xq.put("true")

    with pytest.raises(OSError, match="No space left") as caught:
        await feed_many()
    assert isinstance(caught.value, XquteError)
    await xq.run_until_complete()
    assert xq.jobs
    for job in xq.jobs:
        assert job.outcome is JobOutcome.SUCCEEDED or "No space left" in job.reason or job.rc == 122
