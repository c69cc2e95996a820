"""What goes over the channel: words, frames, events, pieces of files; against a real bash."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from xqute import Resources
from xqute.machine import Holding, Machine
from xqute_ssh import commands, options, parse
from xqute_ssh.options import Server, impossible

AGENT = Path(commands.__file__).with_name("agent.sh")
#: No process is started for each example by chance alone: a few dozen will do.
by_bash = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
EVERY_BYTE = bytes(range(256))


def run_bash(script):
    argv = ["bash", "-p", "/dev/stdin"]
    return subprocess.run(
        argv, input=script.encode(), capture_output=True, check=True, timeout=30
    ).stdout


@by_bash
@given(st.binary(max_size=300).map(lambda data: data.replace(b"\0", b"")))
@example(EVERY_BYTE[1:])
def test_a_quoted_word_is_what_it_stands_for(word):
    assert run_bash(f"printf %s {commands.quote(word)}") == word


def test_a_nul_can_be_no_word():
    with pytest.raises(ValueError, match="NUL"):
        commands.quote("a\0b")


def agent(*calls):
    """What the agent says to these calls."""
    functions = AGENT.read_text().replace("\nxq_serve\n", "\n")
    return run_bash("\n".join([functions, *calls, "wait"]))


@by_bash
@given(st.binary(max_size=2000))
@example(EVERY_BYTE * 3)
@example(b"\\n\\0\\\\" * 70 + b"\0" * 500 + b"\n")
@example(b"x" * 220 + b"\0" + b"y" * 219 + b"\0")
def test_a_file_arrives_as_it_is(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(data)
    said = agent(f"xq_get 7 {commands.quote(str(path))} 0")
    assert all(len(line) < 512 for line in said.split(b"\n"))
    *pieces, done = parse.Events().feed(said)
    assert done == parse.Event("done", 7, b"")
    assert b"".join(parse.unescape(piece.rest.split(b" ", 2)[2]) for piece in pieces) == data


def test_a_file_is_sent_from_where_it_is_wanted(tmp_path):
    (tmp_path / "file").write_bytes(EVERY_BYTE)
    *pieces, _ = parse.Events().feed(agent(f"xq_get 7 {tmp_path}/file 250"))
    assert parse.unescape(pieces[0].rest.split(b" ", 2)[2]) == EVERY_BYTE[250:]


@by_bash
@given(st.binary(max_size=2000))
@example(EVERY_BYTE * 3)
@example(b"-v x %s %% \\n")
def test_a_file_is_written_as_it_is(tmp_path, data):
    path = tmp_path / "file"
    path.write_bytes(b"older and longer" * 200)
    calls = [build(5) for build in commands.build_puts(str(path), data)]
    assert agent(*calls).count(b"done 5") == len(calls)
    assert path.read_bytes() == data


def test_a_file_in_many_pieces_is_written_as_it_is(tmp_path):
    data = os.urandom(50_000)
    calls = [build(5) for build in commands.build_puts(f"{tmp_path}/file", data)]
    assert len(calls) == 4
    agent(*calls)
    assert (tmp_path / "file").read_bytes() == data


def test_what_cannot_be_done_is_said_with_the_reason(tmp_path):
    said = agent(f"xq_do 4 mkdir {tmp_path}/a/b", f"xq_get 5 {tmp_path}/none 0")
    first, second = sorted(parse.Events().feed(said), key=lambda event: event.number)
    assert (first.kind, second.kind) == ("failed", "failed")
    assert b"No such file" in first.rest
    assert b"No such file" in second.rest


def test_what_is_revoked_already_is_revoked(tmp_path):
    """The word of that may be lost, and it is asked for again."""
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "job.start.run-0").write_text("host boot 1 2 -\n")
    said = agent(
        f"xq_revoke 4 {tmp_path}/0 run-0",
        f"xq_revoke 5 {tmp_path}/0 run-0",
        f"xq_revoke 6 {tmp_path}/1 run-0",
    )
    assert [event.kind for event in parse.Events().feed(said)] == ["done", "done", "failed"]
    assert (tmp_path / "0" / "job.start.run-0").read_text() == "revoked driver\n"


def test_a_start_that_is_sent_again_is_not_refused_and_writes_nothing(tmp_path):
    """Where its first sending was heard it may run: nobody else is to start it, or to touch it."""
    (tmp_path / "job.start.run-0").write_text("host boot 1 2 -\n")
    script = tmp_path / "job.wrapped.ssh"
    script.write_text("being read")
    said = agent(
        f"xq_start 4 {tmp_path} run-0 {script} 'another text'",
        f"xq_start 5 {tmp_path} run-0 {tmp_path} 'this cannot be written'",
        f"xq_start 6 {tmp_path} run-0 {tmp_path}/none",
    )
    kinds = {(event.number, event.kind) for event in parse.Events().feed(said)}
    assert {(4, "started"), (5, "started"), (6, "started")} <= kinds
    assert "failed" not in {kind for _, kind in kinds}
    assert script.read_text() == "being read"


@given(st.lists(st.integers(1, 40), max_size=30))
def test_events_are_put_together_from_pieces_of_any_size(cuts):
    lines = [b"@13 started 7 8 9\n", b"@6 done 1\n", b"@15 data 3 - \xff\x01\\n x\n"]
    stream, events, parser = b"".join(lines), [], parse.Events()
    for cut in cuts:
        events += parser.feed(stream[:cut])
        stream = stream[cut:]
    events += parser.feed(stream)
    assert [event.kind for event in events] == ["started", "done", "data"]
    assert events[2].rest == b"- \xff\x01\\n x"


@pytest.mark.parametrize(
    "line", [b"hello\n", b"@5 done 1\n", b"@7 done 1\n", b"@6 done x\n", b"\n", b"x" * 2000]
)
def test_what_is_no_event_is_an_error(line):
    with pytest.raises(parse.ProtocolError):
        parse.Events().feed(line)


@pytest.mark.parametrize(
    ("words", "machine"),
    [
        (b"box id 1 yes no 4 2000 0,1", Machine(4, 2000, ("0", "1"))),
        (b"box - 1 no yes 0 - -", Machine(1, None, ())),
    ],
)
def test_a_greeting_is_read(words, machine):
    greeting = parse.parse_greeting(parse.Event("hello", 0, words))
    assert (greeting.host, greeting.machine) == ("box", machine)


@pytest.mark.parametrize("rest", [b"", b"box id now yes no 4 2000 -", b"box id 1 yes"])
def test_what_is_no_greeting_is_an_error(rest):
    with pytest.raises(parse.ProtocolError):
        parse.parse_greeting(parse.Event("hello", 0, rest))


def test_the_bootstrap_passes_through_any_shell():
    inside = commands.build_bootstrap("MARK").split("'")
    assert len(inside) == 3
    assert not set("'\\\n!") & set(inside[1])


# --- servers ------------------------------------------------------------------------------------


def complete(config, **said):
    [server] = options.parse_servers({"box": said})
    return options.complete(server, config)


def test_what_a_user_says_goes_before_the_configuration():
    config = {
        "hostname": "10.0.0.1",
        "port": "2200",
        "user": "conf",
        "connecttimeout": "3",
        "identityfile": ["/k"],
        "proxyjump": "none",
        "userknownhostsfile": "/a /b",
        "stricthostkeychecking": "no",
    }
    server = complete(config)
    assert (server.address, server.connect_timeout) == ("conf@10.0.0.1:2200", 3.0)
    assert (server.proxy_jump, server.known_hosts, server.host_keys) == (None, "/a", "accept-new")
    server = complete(config, host="10.0.0.2", port=22, user="me", host_keys="strict")
    assert (server.address, server.host_keys) == ("me@10.0.0.2:22", "strict")


def test_a_name_may_hold_the_user():
    [server] = options.parse_servers(["me@box"])
    assert options.complete(server, {}).address == "me@box:22"


def test_a_host_key_is_named_as_ssh_names_it():
    assert Server("x", "box", 22).key_name == "box"
    assert Server("x", "box", 2222).key_name == "[box]:2222"
    assert Server("x", "box", 2222, host_key_alias="alias").key_name == "[alias]:2222"


# --- machines -----------------------------------------------------------------------------------


def test_what_is_left_of_a_machine():
    machine = Machine(4, 1000, ("0", "1", "2"))
    held = [Holding(Resources(cpus=2, memory_mib=600), ("1",))]
    assert machine.fit(Resources(cpus=2, memory_mib=400), held) == ()
    assert machine.fit(Resources(cpus=3), held) is None
    assert machine.fit(Resources(memory_mib=401), held) is None
    assert machine.fit(Resources(gpus=2), held) == ("0", "2")
    assert machine.fit(Resources(gpus=3), held) is None
    assert machine._replace(memory_mib=None).fit(Resources(memory_mib=10**9), held) == ()


def test_what_can_never_be_had_is_said():
    assert "queue" in impossible(Resources(queue="long"))
    assert "2 nodes" in impossible(Resources(nodes=2))
    assert impossible(Resources(cpus=64, gpus=8, walltime_s=5)) == ""
