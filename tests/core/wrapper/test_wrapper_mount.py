"""The wrapper where the job's folder is a mount of a bucket: files are written whole, by copying.

Here an ordinary folder stands for the mount: what mounts do otherwise is tried in tests/gbatch.
"""

from __future__ import annotations

import os

import pytest

from xqute import _protocol
from xqute._protocol import Event

HOOKS = pytest.mark.parametrize(
    "way",
    [{}, {"timeout_s": 60}, {"prescript": ":"}, {"prescript": ":", "timeout_s": 60}],
    ids=["plain", "timed", "hooked", "hooked-timed"],
)


@pytest.fixture
def make(make_attempt, tmp_path):
    """Attempts on a mount; their local folders are below `tmp_path / "local"`."""
    (tmp_path / "local").mkdir()
    environ = {**os.environ, "TMPDIR": str(tmp_path / "local")}

    def make_one(argv, **kwargs):
        attempt = make_attempt(
            argv, **{"tag": "0123abcd-0", "upload_s": 0.05, "spool": True, **kwargs}
        )
        start = attempt.start
        attempt.start = lambda **popen: start(environ=environ, **popen)
        return attempt

    yield make_one
    assert os.listdir(tmp_path / "local") == [], "the local folder was left behind"


@HOOKS
@pytest.mark.parametrize(("script", "rc", "status"), [("true", 0, 6), ("exit 3", 3, 7)])
def test_all_that_an_attempt_tells_arrives(make, way, script, rc, status):
    attempt = make(["bash", "-c", f"echo out; echo err >&2; {script}"], **way).run()
    assert attempt.exit_code == rc
    assert attempt.end == (rc, status, "")
    assert (attempt.stdout, attempt.stderr) == (b"out\n", b"err\n")
    assert attempt.start_claim.pid == attempt.process.pid
    assert [event[:5] for event in attempt.events] == [(7, 0, 0, 4, -1), (7, 0, 0, status, rc)]
    assert {event.run for event in attempt.events} == {"0123abcd"}


def test_nothing_but_whole_files_is_left_in_the_mount(make):
    attempt = make(["echo", "x"]).run()
    assert {path.name for path in attempt.folder.iterdir()} == {
        *("job.stdout", "job.stderr", "job.rc", "job.status", "job.wrapped.test", "spool"),
        *("job.start.0123abcd-0", "job.end.0123abcd-0"),
    }


@HOOKS
def test_outputs_are_uploaded_while_the_command_runs(make, way, tmp_path):
    gate = tmp_path / "gate"
    script = f"echo first; until [[ -e {gate} ]]; do sleep 0.01; done; echo last"
    attempt = make(["bash", "-c", script], **way).start()
    attempt.until_stdout(b"first\n")
    assert attempt.read("job.status") == b"4"
    gate.touch()
    assert attempt.wait() == 0
    assert attempt.stdout == b"first\nlast\n"


def test_a_second_start_does_not_run(make):
    attempt = make(["bash", "-c", "echo run; sleep 0.2"]).run()
    first = attempt.read("job.start.0123abcd-0")
    attempt.close()
    assert attempt.run().exit_code == 121
    assert attempt.stdout == b"run\n"
    assert attempt.read("job.start.0123abcd-0") == first


def test_a_revoked_attempt_does_not_run(make):
    attempt = make(["touch", "ran"])
    assert _protocol.revoke_start(attempt.metadir, attempt.tag, "driver")
    assert attempt.run().exit_code == 121
    assert attempt.stdout is None


def test_an_attempt_that_was_given_up_leaves_all_alone(make, tmp_path):
    gate = tmp_path / "gate"
    script = f"echo late; touch {gate}.up; until [[ -e {gate} ]]; do sleep 0.01; done"
    attempt = make(["bash", "-c", script], upload_s=60).start()
    attempt.until((tmp_path / "gate.up").exists)
    assert _protocol.write_end(attempt.metadir, attempt.tag, -3, 7, "LOST")
    (attempt.folder / "job.stdout").write_bytes(b"of a later attempt")
    gate.touch()
    attempt.wait()
    assert attempt.end == (-3, 7, "LOST")
    assert attempt.stdout == b"of a later attempt"
    assert [event.status for event in attempt.events] == [4]


@HOOKS
def test_term_reaches_the_command_and_its_end_is_told(make, way):
    script = "trap 'echo cleaned; exit 9' TERM; echo ready; sleep 60 & wait"
    attempt = make(["bash", "-c", script], **way).start()
    attempt.until_stdout(b"ready\n")
    attempt.signal(15)
    attempt.wait()
    assert attempt.end[:2] == (9, 7)
    assert attempt.stdout == b"ready\ncleaned\n"


def test_a_timeout_is_told(make):
    attempt = make(["bash", "-c", "trap '' TERM; sleep 60"], timeout_s=0.2, grace_s=0.2).run()
    assert attempt.end == (137, 7, "TIMEOUT")


def test_a_mount_that_takes_nothing_is_a_failed_setup(make, tmp_path):
    attempt = make(["true"], metadir=tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    assert attempt.run().exit_code == 122


def test_a_mount_that_goes_away_makes_no_success(make, tmp_path):
    attempt = make(
        ["bash", "-c", f"mv {tmp_path}/mount {tmp_path}/gone"], metadir=tmp_path / "mount"
    )
    assert attempt.run().exit_code == 122
    assert not (tmp_path / "gone" / "job.end.0123abcd-0").exists()


def test_the_command_gets_no_descriptor_of_the_wrappers(make, probe):
    attempt = make([*probe, "show"]).run()
    assert attempt.found.fds == [0, 1, 2]


def test_an_event_names_its_run():
    event = Event(7, 0, 0, 6, 0, 1234, "0123abcd")
    assert _protocol.event_name(event) == "7.0.0.6.0.1234.0123abcd"
    assert _protocol.parse_event_name("7.0.0.6.0.1234.0123abcd") == event
    assert _protocol.parse_event_name("7.0.0.6.0.1234") == Event(7, 0, 0, 6, 0, 1234)
    assert _protocol.parse_event_name("7.0.0.6.0.1234.") is None
