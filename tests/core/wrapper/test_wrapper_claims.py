"""At most one start and one end per attempt, whoever races for them."""

from __future__ import annotations

import os
import random
import subprocess
import time

import pytest

from xqute import _protocol


def test_the_start_claim_tells_who_runs_the_attempt(make_attempt):
    attempt = make_attempt(["sleep", "60"], native_id="'4711'").start()
    claim = attempt.until(lambda: attempt.start_claim)
    assert claim == _protocol.StartClaim(
        host=os.uname().nodename,
        boot_id=_protocol.boot_id(),
        pid=attempt.process.pid,
        start_ticks=_protocol.process_start_ticks(attempt.process.pid),
        native_id="4711",
        revoked=False,
    )
    assert _protocol.claim_is_alive(claim) is True
    attempt.signal(9)
    attempt.wait()
    assert _protocol.claim_is_alive(claim) is False


def test_a_process_id_that_is_not_the_hosts_is_never_found_dead(make_attempt):
    """A container may have its host's name: the driver would look for its pid, and find nothing."""
    attempt = make_attempt(["sleep", "60"], own_pids=True).start()
    claim = attempt.until(lambda: attempt.start_claim)
    assert (claim.host, claim.boot_id, claim.pid) == (os.uname().nodename, _protocol.boot_id(), 0)
    attempt.signal(9)
    attempt.wait()
    assert _protocol.claim_is_alive(claim) is None
    assert _protocol.claim_is_alive(claim._replace(boot_id="earlier")) is False


def test_the_claims_host_is_not_taken_from_an_inherited_variable(make_attempt):
    attempt = make_attempt(["true"]).run(environ={**os.environ, "HOSTNAME": "the-login-node"})
    assert attempt.start_claim.host == os.uname().nodename


def test_claims_are_named_after_the_tag(make_attempt):
    attempt = make_attempt(["true"], tag="run it's-3").run()
    assert attempt.end == (0, 6, "")
    assert attempt.read("job.end.run it's-3") == b"0 6 \n"


@pytest.mark.parametrize("by", ["driver", "another wrapper"])
def test_an_attempt_whose_start_is_taken_touches_nothing(make_attempt, tmp_path, by):
    attempt = make_attempt(["touch", str(tmp_path / "job0/ran")], spool=True, cwd="/")
    if by == "driver":
        assert _protocol.revoke_start(attempt.metadir, "0", "it was submitted again")
    else:
        (attempt.folder / "job.start.0").touch()
    before = sorted(os.listdir(attempt.folder))
    attempt.run()
    assert attempt.exit_code == 121
    assert sorted(os.listdir(attempt.folder)) == before
    assert attempt.events == []


def test_a_revoked_attempt_cannot_be_revoked_again(make_attempt):
    attempt = make_attempt(["true"]).run()
    assert not _protocol.revoke_start(attempt.metadir, "0", "too late")
    assert attempt.end == (0, 6, "")


def test_an_attempt_that_was_given_up_before_it_started_does_not_start(make_attempt):
    attempt = make_attempt(["echo", "ran"])
    assert _protocol.write_end(attempt.metadir, "0", -3, 7, "LOST")
    attempt.run()
    assert attempt.exit_code == 121
    assert attempt.stdout is None
    assert attempt.end == (-3, 7, "LOST")


@pytest.mark.parametrize("sections", [{}, {"prescript": ":"}, {"timeout_s": 60}])
def test_an_end_that_somebody_else_has_told_stands(make_attempt, tmp_path, sections):
    go_on = tmp_path / "go on"
    os.mkfifo(go_on)
    command = ["sh", "-c", 'echo ready; read _ <"$1"; exit 5', "sh", str(go_on)]
    attempt = make_attempt(command, **sections).start()
    attempt.until_stdout(b"ready")
    assert _protocol.write_end(attempt.metadir, "0", -3, 7, "LOST")
    go_on.write_text("\n")
    assert attempt.wait() == 5
    assert attempt.end == (-3, 7, "LOST")


def test_the_wrappers_end_cannot_be_told_again(make_attempt):
    attempt = make_attempt(["sh", "-c", "exit 5"]).run()
    assert not _protocol.write_end(attempt.metadir, "0", -3, 7, "LOST")
    assert attempt.end == (5, 7, "")


@pytest.mark.concurrency
def test_of_two_wrappers_of_one_attempt_exactly_one_runs(make_attempt):
    for _ in range(50):
        attempt = make_attempt(["sh", "-c", 'echo ran >>"$XQUTE_JOB_METADIR/ran"'])
        environ = {**os.environ, "XQUTE_JOB_METADIR": attempt.metadir}
        rivals = [
            subprocess.Popen(["/bin/bash", "-p", attempt.script], env=environ) for _ in range(2)
        ]
        assert sorted(rival.wait(30) for rival in rivals) == [0, 121]
        assert attempt.read("ran") == b"ran\n"
        assert attempt.end == (0, 6, "")


@pytest.mark.concurrency
def test_of_a_wrapper_and_a_revocation_exactly_one_wins(make_attempt):
    for _ in range(50):
        attempt = make_attempt(["true"]).start()
        at_s = time.monotonic() + random.uniform(0, 0.006)
        while time.monotonic() < at_s:
            pass
        revoked = _protocol.revoke_start(attempt.metadir, "0", "race")
        assert attempt.wait() == (121 if revoked else 0)
        assert (attempt.stdout is None) == revoked
        assert attempt.end == (None if revoked else (0, 6, ""))


def test_a_folder_that_is_gone_is_a_failure_of_its_own(make_attempt, tmp_path):
    attempt = make_attempt(["touch", str(tmp_path / "ran")])
    script = tmp_path / "script"
    attempt.script.rename(script)
    attempt.script = script
    attempt.spool.rmdir()
    attempt.folder.rmdir()
    with (tmp_path / "stderr").open("wb") as stderr:
        attempt.run(stderr=stderr)
    assert attempt.exit_code == 122
    assert not (tmp_path / "ran").exists()
    assert b"job.start.0: No such file or directory" in (tmp_path / "stderr").read_bytes()


@pytest.mark.parametrize("name", ["job.stdout", "job.stderr"])
@pytest.mark.parametrize("sections", [{}, {"prescript": ":"}, {"timeout_s": 60}])
def test_outputs_that_cannot_be_opened_are_a_set_up_failure(make_attempt, name, sections, tmp_path):
    attempt = make_attempt(["touch", str(tmp_path / "ran")], **sections)
    (attempt.folder / name).mkdir()
    attempt.run()
    assert attempt.exit_code == 122
    assert attempt.end == (122, 7, "SETUP")
    assert not (tmp_path / "ran").exists()
