"""Getting in: what is refused, in which words, and what the ssh configuration says."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading

import pytest

from xqute import ConfigError, JobOutcome, SchedulerError, Xqute, run
from xqute.errors import XquteWarning
from xqute_ssh import SshScheduler


def ssh(workdir, servers, commands=("true",), **opts):
    return run(
        commands, scheduler="ssh", workdir=workdir, scheduler_opts={"servers": servers, **opts}
    )


@pytest.fixture
def refused(tmp_path):
    """Have a run with this one server fail, and give what it says."""

    def refuse(options, **opts):
        with pytest.raises(SchedulerError) as caught:
            ssh(tmp_path / "work", {"box": options}, **opts)
        assert "box" in str(caught.value)
        return str(caught.value)

    return refuse


# --- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("servers", [None, [], {}, ""])
def test_no_servers_is_an_error(tmp_path, servers):
    with pytest.raises(ValueError, match="needs servers"):
        SshScheduler(tmp_path, servers=servers)


@pytest.mark.parametrize(
    ("servers", "words"),
    [
        (["a", "a"], "twice"),
        ({"a": {"keyflie": "x"}}, "did you mean 'keyfile'"),
        ({"a": {"port": "ssh"}}, "port"),
        ({"a": {"slots": 0}}, "slots"),
        ({"a": {"slots": True}}, "slots"),
        ({"a": {"connect_timeout": -1}}, "connect_timeout"),
        ({"a": {"host_keys": "auto"}}, "host_keys"),
        ({"a": "b"}, "no dict"),
        (["-oProxyCommand=x"], "no name"),
        (5, "list"),
    ],
)
def test_options_that_make_no_sense_are_errors(tmp_path, servers, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        SshScheduler(tmp_path, servers=servers)


@pytest.mark.parametrize("name", ["log_interval", "unacknowledged_timeout"])
@pytest.mark.parametrize("value", ["soon", 0, -1, None])
def test_intervals_that_make_no_sense_are_errors(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        SshScheduler(tmp_path, servers="a", **{name: value})


@pytest.mark.parametrize("folder", ["~/run", "run"])
def test_a_remote_workdir_is_absolute(tmp_path, folder):
    """What is relative would be so to more than one folder there, and nobody there expands ~."""
    with pytest.raises(ConfigError, match="mounted_workdir must be absolute"):
        SshScheduler(tmp_path, servers=["a"], mounted_workdir=folder)


def test_servers_may_be_named_in_one_string(tmp_path):
    scheduler = SshScheduler(tmp_path, servers="node1, me@node2", log_interval="0.5")
    assert [server.name for server in scheduler.servers] == ["node1", "me@node2"]
    assert scheduler.log_interval == 0.5


def test_keywords_of_client_programs_are_accepted_with_one_warning(tmp_path):
    with pytest.warns(XquteWarning, match="ssh, ctrl_persist, ctrl_dir") as caught:
        SshScheduler(tmp_path, servers=["a"], ssh="ssh", ctrl_persist=600, ctrl_dir="/tmp")
    assert len(caught) == 1


def test_making_one_needs_neither_network_nor_the_library(tmp_path):
    scheduler = SshScheduler(tmp_path, servers=["no-such-host.invalid"])
    assert "ssh" in repr(scheduler)


def test_a_passphrase_is_in_no_repr(tmp_path):
    scheduler = SshScheduler(tmp_path, servers={"a": {"passphrase": "open sesame"}})
    assert "open sesame" not in f"{scheduler!r} {scheduler.servers!r}"


# --- the network --------------------------------------------------------------------------------


def test_a_port_where_nobody_listens(refused, servers):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        told = refused(servers["a"].options(port=sock.getsockname()[1]))
    assert "cannot be reached" in told


def test_a_host_that_is_not_there(refused, servers):
    assert "no such host" in refused(servers["a"].options(host="no-such-host.invalid"))


def test_a_server_that_does_not_answer(refused, servers):
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        told = refused(servers["a"].options(port=sock.getsockname()[1], connect_timeout=0.5))
    assert "answered within 0.5 s" in told


def test_something_that_is_no_ssh_server(refused, servers):
    with socket.create_server(("127.0.0.1", 0)) as sock:

        def serve():
            connection, _ = sock.accept()
            with connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        told = refused(servers["a"].options(port=sock.getsockname()[1], connect_timeout=2))
        thread.join()
    assert "no SSH server answered" in told


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_that_the_server_does_not_know(refused, servers, keys):
    told = refused(servers["a"].options(keyfile=str(keys.stranger)))
    assert "cannot log in" in told
    assert str(keys.stranger) in told


def test_a_key_file_that_is_not_there(refused, servers, tmp_path):
    assert "is not there" in refused(servers["a"].options(keyfile=str(tmp_path / "none")))


def test_a_key_file_that_is_no_key(refused, servers, tmp_path):
    (tmp_path / "junk").write_text("junk\n")
    assert "is no key" in refused(servers["a"].options(keyfile=str(tmp_path / "junk")))


def test_a_key_with_a_passphrase(refused, servers, keys, tmp_path):
    locked = servers["a"].options(keyfile=str(keys.locked))
    assert "is encrypted" in refused(locked)
    assert "wrong passphrase" in refused({**locked, "passphrase": "open simsim"})
    [job] = ssh(tmp_path / "w", {"box": {**locked, "passphrase": "open sesame"}})
    assert job.outcome == JobOutcome.SUCCEEDED


def test_an_unknown_host_key_is_refused_with_the_line_to_add(refused, servers, tmp_path):
    empty = tmp_path / "known_hosts"
    empty.touch()
    options = servers["a"].options(known_hosts=str(empty))
    told = refused(options)
    assert empty.read_text() == ""
    [line] = [line for line in told.splitlines() if " ssh-ed25519 " in line and "==" not in line]
    empty.write_text(f"{line}\n")
    [job] = ssh(tmp_path / "w", {"box": options})
    assert job.outcome == JobOutcome.SUCCEEDED


def test_an_unknown_host_key_is_added_if_that_is_asked_for(servers, tmp_path):
    known = tmp_path / "new" / "known_hosts"
    options = servers["a"].options(known_hosts=str(known), host_keys="accept-new")
    ssh(tmp_path / "w", {"box": options})
    ssh(tmp_path / "w", {"box": {**options, "host_keys": "strict"}})
    assert known.read_text().count("ssh-ed25519") == 1


@pytest.mark.parametrize("host_keys", ["strict", "accept-new"])
def test_a_changed_host_key_is_refused_always(refused, servers, tmp_path, host_keys):
    server, other = servers["a"], servers["b"]
    key = (other.keys.folder / "host-b.pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"[{server.address}]:{server.port} {' '.join(key)}\n")
    told = refused(server.options(known_hosts=str(known), host_keys=host_keys))
    assert "has changed" in told
    assert len(known.read_text().splitlines()) == 1


# --- the ssh configuration ----------------------------------------------------------------------


def test_the_ssh_configuration_is_read(servers, keys, tmp_path):
    server = servers["a"]
    config = tmp_path / "config"
    options = server.options()
    config.write_text(
        "Host box\n"
        f"  HostName {server.address}\n  Port {server.port}\n  User {options['user']}\n"
        f"  IdentityFile {keys.user}\n  UserKnownHostsFile {keys.known_hosts}\n"
    )
    [job] = ssh(tmp_path / "w", ["box"], ssh_config=config)
    assert job.outcome == JobOutcome.SUCCEEDED
    assert str(job.jid).endswith(f"@{options['user']}@{server.address}:{server.port}")


def test_a_configuration_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(SchedulerError, match="no ssh configuration"):
        ssh(tmp_path / "w", ["box"], ssh_config=tmp_path / "none")


def test_servers_can_be_reached_through_others(servers, tmp_path):
    server, jump = servers["a"], servers["b"]
    options = server.options(proxy_jump=f"{jump.options()['user']}@{jump.address}:{jump.port}")
    [job] = ssh(tmp_path / "w", {"box": options}, [["bash", "-c", "exit 5"]])
    assert job.rc == 5


def test_a_proxy_command_is_the_connection(servers, relay, tmp_path):
    options = servers["a"].options(proxy_command=f"python3 {relay} %h %p")
    [job] = ssh(tmp_path / "w", {"box": options}, [["bash", "-c", "exit 5"]])
    assert job.rc == 5


# --- what is on the other side ------------------------------------------------------------------

_NOISE = (
    'sh -c \'echo hello; echo "@12 started 1"; head -c 100000 /dev/zero; '
    """eval "$SSH_ORIGINAL_COMMAND"'"""
)
_SHELLS = {
    "noise of a .bashrc": _NOISE,
    "much on stderr": """sh -c 'head -c 1000000 /dev/zero >&2; eval "$SSH_ORIGINAL_COMMAND"'""",
    "csh": """tcsh -f -c "$SSH_ORIGINAL_COMMAND\"""",
    "fish": """fish -c "$SSH_ORIGINAL_COMMAND\"""",
    "zsh": """zsh -f -c "$SSH_ORIGINAL_COMMAND\"""",
    "dash": """dash -c "$SSH_ORIGINAL_COMMAND\"""",
}


@pytest.mark.needs("tcsh", "fish", "zsh", "dash")
@pytest.mark.parametrize("shell", _SHELLS.values(), ids=_SHELLS.keys())
def test_any_login_shell_will_do(own_sshd, tmp_path, shell):
    server = own_sshd("shell", force_command=shell)
    [job] = ssh(tmp_path / "w", {"box": server.options()}, [["printf", "%s", "it's $HOME"]])
    assert job.outcome == JobOutcome.SUCCEEDED
    assert job.stdout_file.read_bytes() == b"it's $HOME"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("""env PATH=/nowhere /bin/sh -c "$SSH_ORIGINAL_COMMAND\"""", "there is no bash"),
        ("""sh -c 'echo This account is not available. >&2; exit 1'""", "not available"),
        ("""sh -c 'while :; do echo y; done'""", "prints without end"),
        # What nobody reads of stderr holds up stdout, too.
        ("""sh -c 'while :; do echo oh no >&2; done'""", "did not answer.* It said: .*oh no"),
        ("""sh -c 'sleep 60'""", "did not answer"),
        ("""sh -c 'printf "XQUTE"; exec bash -c "exit 3"'""", "could not be started"),
    ],
)
def test_no_bash_on_the_other_side(own_sshd, refused, command, words):
    server = own_sshd("none", force_command=command)
    assert re.search(words, refused(server.options(connect_timeout=2)))


def test_jobs_inherit_nothing_of_the_agents(servers, tmp_path):
    """Nor of the shells beside the one that starts them."""
    script = 'echo "${LC_ALL-unset}" "$(umask)" "$(set | grep -c ^xq_)"'
    meet = f"mkdir {tmp_path}/$1; until [[ -e {tmp_path}/a && -e {tmp_path}/b ]]; do :; done; "
    commands = [
        ["bash", "-c", f"{meet} exec grep -E '^Sig(Ign|Blk)' /proc/self/status", "bash", "a"],
        ["bash", "-c", f"{meet} exec ls /proc/self/fd", "bash", "b"],
        ["bash", "-c", script],
    ]
    jobs = run(
        commands,
        scheduler="ssh",
        workdir=tmp_path / "w",
        forks=2,
        scheduler_opts={"servers": {"box": servers["a"].options()}},
    )
    signals, descriptors, shell = [job.stdout_file.read_text() for job in jobs]
    assert [line.split()[1] for line in signals.splitlines()] == ["0" * 16] * 2
    assert descriptors.split() == ["0", "1", "2", "3"], "the last is that of ls"
    assert shell == "unset 0022 0\n"


def test_the_library_beneath_says_nothing_by_itself(tmp_path):
    """It logs tracebacks of what is told as one error here."""
    script = """
import socket, threading, sys, xqute
with socket.create_server(("127.0.0.1", 0)) as sock:
    def speak():
        while True:
            connection, _ = sock.accept()
            connection.sendall(b"220 mail\\r\\n" * 300)
            connection.close()
    threading.Thread(target=speak, daemon=True).start()
    options = {"host": "127.0.0.1", "port": sock.getsockname()[1], "user": "me"}
    try:
        opts = {"servers": {"box": options}}
        xqute.run(["true"], scheduler="ssh", workdir=sys.argv[1], scheduler_opts=opts)
    except xqute.SchedulerError:
        print("refused")
"""
    argv = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert "Traceback" not in done.stderr


async def test_a_server_that_is_away_at_the_start_joins_later(servers, own_sshd, tmp_path):
    late = own_sshd("late")
    late.stop()
    async with Xqute(
        "ssh",
        workdir=tmp_path,
        forks=2,
        scheduler_opts={"servers": {"a": servers["a"].options(), "late": late.options()}},
    ) as xq:
        jobs = [await xq.feed(["sleep", "0.01"]) for _ in range(4)]
    assert {str(job.jid).rpartition(":")[2] for job in jobs} == {str(servers["a"].port)}
