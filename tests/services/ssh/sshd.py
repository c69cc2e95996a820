"""Private SSH servers for tests: real ones, as this user, on ports that were free."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

#: Until a server answers; this may be a busy machine.
START_TIMEOUT_S = 30


class Keys:
    """A user's key that the servers accept, one that they do not, and what is known of hosts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        self.user = self.make("user")
        self.stranger = self.make("stranger")
        self.locked = self.make("locked", passphrase="open sesame")
        self.known_hosts = folder / "known_hosts"
        self.known_hosts.touch()
        authorized = folder / "authorized_keys"
        keys = [self.user, self.locked]
        authorized.write_text("".join(Path(f"{key}.pub").read_text() for key in keys))

    def make(self, name: str, passphrase: str = "") -> Path:
        path = self.folder / name
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)]
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
        return path


class Sshd:
    """One server.

    Args:
        keys: Whom it lets in.
        name: What its files are called.
        max_sessions: How many channels a connection may have.
        force_command: What is run in the place of a command ($SSH_ORIGINAL_COMMAND).
        lines: More lines of its configuration.
        within: The beginning of a command line that runs another somewhere else.
        address: Where it listens.
        port: Where, too; None: one that is free.
    """

    def __init__(
        self,
        keys: Keys,
        name: str,
        *,
        max_sessions: int = 10,
        force_command: str = "",
        lines: tuple[str, ...] = (),
        within: tuple[str, ...] = (),
        address: str = "127.0.0.1",
        port: int | None = None,
    ) -> None:
        self.keys = keys
        self.name = name
        self.address = address
        self.host_key = keys.make(f"host-{name}")
        self.log = keys.folder / f"sshd-{name}.log"
        self._within = within
        self._is_known = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lines = [
            f"HostKey {self.host_key}",
            "PidFile none",
            f"AuthorizedKeysFile {keys.folder}/authorized_keys",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            f"MaxSessions {max_sessions}",
            "UseDNS no",
            "PrintMotd no",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
            *([f"ForceCommand {force_command}"] if force_command else []),
            *lines,
        ]
        self.port = port or free_port(address)

    def start(self) -> None:
        """Start it, and return when it answers."""
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        config = self.keys.folder / f"sshd-{self.name}.conf"
        listen = [f"ListenAddress {self.address}", f"Port {self.port}"]
        config.write_text("\n".join([*listen, *self._lines, ""]))
        sshd = shutil.which("sshd") or "/usr/sbin/sshd"
        argv = [*self._within, sshd, "-D", "-e", "-f", str(config)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while b"Server listening" not in self.log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"sshd did not start:\n{self.log.read_text()}")
            time.sleep(0.01)
        if self._is_known:
            return
        self._is_known = True
        key = Path(f"{self.host_key}.pub").read_text().split()
        host = self.address if self.port == 22 else f"[{self.address}]:{self.port}"
        # One that was known here before has ended, and its port is another's now.
        known = self.keys.known_hosts.read_text().splitlines(keepends=True)
        others = "".join(line for line in known if not line.startswith(f"{host} "))
        self.keys.known_hosts.write_text(f"{others}{host} {key[0]} {key[1]}\n")

    def stop(self) -> None:
        """End it, with all of its connections; jobs run on."""
        if self._process is None:
            return
        self.cut()
        self._process.kill()
        self._process.wait()
        self._process = None
        self.log.write_bytes(b"")

    def cut(self) -> None:
        """End its connections, without a word to either side's programs."""
        assert self._process is not None
        for pid in self.sessions():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def sessions(self) -> list[int]:
        """The processes that serve its connections."""
        assert self._process is not None
        found = []
        for pid in _descendants(self._process.pid):
            try:
                comm = Path(f"/proc/{pid}/comm").read_text().strip()
            except OSError:
                continue
            if comm.startswith("sshd"):
                found.append(pid)
        return found

    def options(self, **more: object) -> dict[str, object]:
        """What a user says of it."""
        return {
            "host": self.address,
            "port": self.port,
            "user": getpass.getuser(),
            "keyfile": str(self.keys.user),
            "known_hosts": str(self.keys.known_hosts),
            **more,
        }


def free_port(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on; the kernel gives it to nobody else for a while."""
    with socket.socket() as sock:
        sock.bind((address, 0))
        port: int = sock.getsockname()[1]
        return port


def _descendants(pid: int) -> list[int]:
    found = []
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    for child in map(int, children):
        found += [child, *_descendants(child)]
    return found
