"""Claims, records and event names: only what the other side writes is read as something."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import _protocol
from xqute._protocol import EndRecord, Event, StartClaim

FUZZ = settings(
    max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Text that is nearly right is worse than noise.
NEARLY = st.text("0123456789-+ .\n_\tTrevokd\0é", max_size=30).map(str.encode)
NOISE = st.one_of(NEARLY, st.binary(max_size=40))
NUMBER = st.integers(0, 10**10 - 1)


@pytest.fixture
def metadir(tmp_path):
    return str(tmp_path)


@pytest.fixture
def write(tmp_path):
    return lambda name, content: (tmp_path / name).write_bytes(content)


# --- start claims ---------------------------------------------------------------------------------


def test_a_start_claim_is_read_as_the_wrapper_writes_it(metadir, write):
    write("job.start.2", b"host-1 0b0e-4f 4711 1234567 12_3\n")
    claim = StartClaim("host-1", "0b0e-4f", 4711, 1234567, "12_3", revoked=False)
    assert _protocol.read_start_claim(metadir, "2") == claim


def test_where_there_is_no_proc_a_start_claim_has_no_ticks(metadir, write):
    write("job.start.0", b"mac - 4711 - -\n")
    claim = _protocol.read_start_claim(metadir, "0")
    assert (claim.boot_id, claim.start_ticks, claim.native_id) == ("-", None, "-")


def test_what_is_said_below_a_start_claim_does_not_change_it(metadir, write):
    write("job.start.0", b"host - 4711 - -\nrc= 3\n")
    assert _protocol.read_start_claim(metadir, "0").pid == 4711


def test_a_revoked_start_says_so(metadir):
    assert _protocol.revoke_start(metadir, "0", "submitted\nagain ")
    assert _protocol.read_start_claim(metadir, "0").revoked
    assert (Path(metadir) / "job.start.0").read_text() == "revoked submitted_again\n"


def test_a_host_by_the_name_of_revoked_is_a_host(metadir, write):
    write("job.start.0", b"revoked - 4711 - -\n")
    assert not _protocol.read_start_claim(metadir, "0").revoked


@pytest.mark.parametrize("content", [b"", b"host boot 4711 12", b"host boot 47 12 -", b"revoked x"])
def test_a_start_claim_that_is_not_whole_is_there_and_says_nothing(metadir, write, content):
    write("job.start.0", content)
    assert _protocol.read_start_claim(metadir, "0") is None
    assert _protocol.claim_exists(_protocol.start_claim_path(metadir, "0"))


def test_a_claim_nobody_made_does_not_exist(metadir):
    assert _protocol.read_start_claim(metadir, "0") is None
    assert not _protocol.claim_exists(_protocol.start_claim_path(metadir, "0"))


@FUZZ
@given(NOISE)
@example(b"h b 0 1 -\n")
@example(b"h b -1 1 -\n")
@example(b"h b 1 1\n")
@example(b"h  b 1 1 -\n")
@example("h b \N{ARABIC-INDIC DIGIT ONE} 1 -\n".encode())
def test_no_noise_is_a_start_claim_unless_it_reads_the_same_again(metadir, write, content):
    write("job.start.0", content)
    claim = _protocol.read_start_claim(metadir, "0")
    if claim is not None and claim.revoked:
        assert content.startswith(b"revoked ")
    elif claim is not None:
        ticks = "-" if claim.start_ticks is None else claim.start_ticks
        line = f"{claim.host} {claim.boot_id} {claim.pid} {ticks} {claim.native_id}\n"
        assert content.startswith(os.fsencode(line))
        assert claim.pid >= 0


# --- end records ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "record"),
    [
        (b"0 6 \n", EndRecord(0, 6, "")),
        (b"143 7 TERMINATED\n", EndRecord(143, 7, "TERMINATED")),
        (b"-3 7 LOST\n", EndRecord(-3, 7, "LOST")),
    ],
)
def test_an_end_record_is_read_as_it_is_written(metadir, write, content, record):
    write("job.end.1", content)
    assert _protocol.read_end_record(metadir, "1") == record


@FUZZ
@given(NOISE)
@example(b"0 6\n")
@example(b"0 6 ")
@example(b"0 6")
@example(b"00 6 \n")
@example(b"-0 6 \n")
@example(b"0 4 \n")
@example(b"0 6 \n\n")
@example(b"0 6 A B\n")
@example("\N{ARABIC-INDIC DIGIT ONE} 7 \n".encode())
def test_no_noise_is_an_end_record_unless_it_reads_the_same_again(metadir, write, content):
    write("job.end.0", content)
    record = _protocol.read_end_record(metadir, "0")
    if record is not None:
        assert content == f"{record.rc} {record.status} {record.cause}\n".encode()
        assert record.status in (6, 7)
        assert record.cause.split() in ([], [record.cause])


def test_the_winner_of_the_end_writes_rc_and_status(metadir, tmp_path):
    (tmp_path / "job.status").write_text("4")
    assert _protocol.write_end(metadir, "0", 137, 6, "REQUESTED")
    assert _protocol.read_end_record(metadir, "0") == EndRecord(137, 6, "REQUESTED")
    assert (tmp_path / "job.rc").read_text() == "137"
    assert (tmp_path / "job.status").read_text() == "6"


def test_the_loser_of_the_end_writes_nothing(metadir, tmp_path):
    assert _protocol.claim_end(metadir, "0", 0, 6, "")
    assert not _protocol.write_end(metadir, "0", 1, 7, "LOST")
    assert os.listdir(tmp_path) == ["job.end.0"]
    assert _protocol.read_end_record(metadir, "0") == EndRecord(0, 6, "")


@pytest.mark.parametrize(("status", "cause"), [(4, ""), (0, ""), (7, "two words"), (7, "a\n")])
def test_an_end_that_nobody_could_read_is_not_claimed(metadir, tmp_path, status, cause):
    with pytest.raises(ValueError, match=r"final|one word"):
        _protocol.claim_end(metadir, "0", 1, status, cause)
    assert os.listdir(tmp_path) == []


@pytest.mark.concurrency
def test_of_many_who_claim_one_wins(tmp_path):
    for round_number in range(20):
        metadir = tmp_path / str(round_number)
        metadir.mkdir()
        at_once = threading.Barrier(4)
        won = []

        def claim(number, metadir=metadir, at_once=at_once, won=won):
            at_once.wait()
            if _protocol.write_end(str(metadir), "0", number, 7, "RACE"):
                won.append(number)

        threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert (metadir / "job.rc").read_text() == str(won[0])
        assert _protocol.read_end_record(str(metadir), "0").rc == won[0]


def test_a_claim_without_words_is_a_claim(tmp_path, monkeypatch):
    def disk_full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_protocol.os, "write", disk_full)
    assert _protocol.revoke_start(str(tmp_path), "0", "driver")
    assert not _protocol.revoke_start(str(tmp_path), "0", "driver")


def test_a_claim_that_cannot_be_made_is_an_error_and_not_a_loss(tmp_path):
    for claim in (
        lambda: _protocol.revoke_start(str(tmp_path / "gone"), "0", "driver"),
        lambda: _protocol.claim_end(str(tmp_path / "gone"), "0", 1, 7, ""),
    ):
        with pytest.raises(FileNotFoundError):
            claim()


def test_a_folder_that_cannot_be_looked_into_proves_nothing(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        _protocol.claim_exists(_protocol.start_claim_path(str(tmp_path / "file"), "0"))


# --- event names ----------------------------------------------------------------------------------


def test_an_event_is_told_by_a_name_alone():
    event = Event(index=12, attempt=1, restart=0, status=6, rc=0, epoch_ms=1_700_000_000_123)
    assert _protocol.event_name(event) == "12.1.0.6.0.1700000000123"
    assert _protocol.parse_event_name("12.1.0.6.0.1700000000123") == event


@given(
    st.builds(
        Event,
        index=NUMBER,
        attempt=NUMBER,
        restart=NUMBER,
        status=st.sampled_from([4, 6, 7]),
        rc=st.integers(-3, 255),
        epoch_ms=st.integers(0, 10**15 - 1),
        run=st.sampled_from(["", "0123abcd"]),
    )
)
def test_every_event_can_be_read_back(event):
    assert _protocol.parse_event_name(_protocol.event_name(event)) == event


@FUZZ
@given(st.one_of(st.text(max_size=40), st.from_regex(r"\A[0-9.+ -]{5,40}\Z")))
@example("12.1.0.6.0.1700000000123\n")
@example("12.1.0.6.0")
@example("12.1.0.6.0.1.1")
@example("012.1.0.6.0.1")
@example("12.1.0.5.0.1")
@example("12.1.0.6.-0.1")
@example("-1.1.0.6.0.1")
@example("\N{ARABIC-INDIC DIGIT ONE}.1.0.6.0.1")
@example(".nfs0001")
@example("12.1.0.6.0.1~")
def test_no_other_name_is_an_event(name):
    event = _protocol.parse_event_name(name)
    if event is not None:
        assert _protocol.event_name(event) == name
        assert event.status in (4, 6, 7)


# --- who is alive ---------------------------------------------------------------------------------


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def claim_of(pid, **changes):
    claim = StartClaim(
        os.uname().nodename,
        _protocol.boot_id(),
        pid,
        _protocol.process_start_ticks(pid),
        "-",
        revoked=False,
    )
    return claim._replace(**changes)


def test_a_claim_is_alive_while_its_process_is(process):
    claim = claim_of(process.pid)
    assert _protocol.claim_is_alive(claim) is True
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert _protocol.process_state(process.pid) == "Z"
    assert _protocol.claim_is_alive(claim) is False
    process.wait()
    assert _protocol.claim_is_alive(claim) is False


def test_a_stopped_process_is_alive(process):
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert _protocol.claim_is_alive(claim_of(process.pid)) is True


def test_a_pid_that_was_used_again_is_somebody_else(process):
    ticks = _protocol.process_start_ticks(process.pid)
    assert _protocol.claim_is_alive(claim_of(process.pid, start_ticks=ticks - 1)) is False


def test_a_claim_of_an_earlier_boot_is_dead(process):
    assert _protocol.claim_is_alive(claim_of(process.pid, boot_id="earlier")) is False


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"boot_id": "-"}, {"start_ticks": None}]
)
def test_what_cannot_be_known_is_not_guessed(process, changes):
    assert _protocol.claim_is_alive(claim_of(process.pid, **changes)) is None


def test_a_revoked_claim_is_not_alive(process):
    assert _protocol.claim_is_alive(claim_of(process.pid, revoked=True)) is False


def test_a_process_may_have_any_name(tmp_path):
    name = "a) S 1 (b"
    os.symlink("/bin/sleep", tmp_path / name)
    with subprocess.Popen([tmp_path / name, "60"]) as process:
        try:
            assert _protocol.process_state(process.pid) in {"S", "R", "D"}
            mine = _protocol.process_start_ticks(os.getpid())
            assert _protocol.process_start_ticks(process.pid) >= mine
        finally:
            process.kill()


def test_no_process_has_no_state():
    with subprocess.Popen(["true"]) as process:
        process.wait()
        assert _protocol.process_state(process.pid) is None
        assert _protocol.process_start_ticks(process.pid) is None
