"""Getting in: paramiko connections, host keys and keys, and what each failure means in words."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import select
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import paramiko

from .options import DEFAULT_KNOWN_HOSTS, Server, complete

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["AccessError", "Configuration", "connect"]

# Else the library's complaints, tracebacks included, would land on stderr.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

#: A peer that acknowledges nothing for so long is taken for dead.
PEER_TIMEOUT_S = 15
KEEPALIVE_S = 5
_MOST_JUMPS = 10


class AccessError(Exception):
    """There is no way in.

    Attributes:
        lasting: Whether trying again is no use until somebody has changed something.
    """

    def __init__(self, message: str, *, lasting: bool) -> None:
        super().__init__(message)
        self.lasting = lasting


class Configuration:
    """The user's ssh configuration, and the machine's; read when it is first asked.

    Args:
        path: The user's file; None: the usual one.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._config: paramiko.SSHConfig | None = None

    def complete(self, server: Server) -> Server:
        """Fill in what the configuration says of a server.

        Raises:
            AccessError: If the configuration cannot be read.
            ConfigError: If what it says makes no sense.
        """
        if self._config is None:
            self._config = self._read()
        return complete(server, self._config.lookup(server.name.rpartition("@")[2]))

    def _read(self) -> paramiko.SSHConfig:
        config = paramiko.SSHConfig()
        # What comes first counts.
        paths = [self._path or os.path.expanduser("~/.ssh/config"), "/etc/ssh/ssh_config"]
        for path in paths:
            try:
                with open(path, encoding="utf-8") as file:
                    config.parse(file)
            except FileNotFoundError as exc:
                if path == self._path:
                    raise AccessError(
                        f"there is no ssh configuration {path}", lasting=True
                    ) from exc
            except (OSError, UnicodeDecodeError, paramiko.ConfigParseError) as exc:
                raise AccessError(f"the ssh configuration {path}: {exc}", lasting=True) from exc
        return config


def connect(
    server: Server, configuration: Configuration
) -> tuple[paramiko.SSHClient, Callable[[], None]]:
    """Connect and log in; give the connection, and what closes it with all that it goes through.

    Blocks.

    Args:
        server: The server, complete.
        configuration: Asked about the servers to go through.

    Raises:
        AccessError: If that cannot be done.
    """
    with ExitStack() as opened:
        try:
            client = _connect(server, configuration, opened, _MOST_JUMPS)
        except AccessError as exc:
            raise AccessError(f"{server.address}: {exc}", lasting=exc.lasting) from exc
        return client, opened.pop_all().close


def _connect(
    server: Server, configuration: Configuration, opened: ExitStack, jumps_left: int
) -> paramiko.SSHClient:
    timeout_s = server.connect_timeout
    pkey = _load_key(server)
    client = paramiko.SSHClient()
    opened.callback(client.close)
    with _explained(server):
        _load_known_hosts(client, server)
        client.set_missing_host_key_policy(_UnknownHost(server))
        sock = _open_socket(server, configuration, opened, jumps_left)
        client.connect(
            server.host_key_alias or server.host,
            port=server.port or 22,
            username=server.user,
            pkey=pkey,
            # A list, too, whatever its annotations say.
            key_filename=[path for path in server.identity_files if os.path.exists(path)],  # type: ignore[arg-type]
            passphrase=server.passphrase,
            # Each key that is offered counts as a failure with the server.
            allow_agent=server.keyfile is None,
            look_for_keys=server.keyfile is None and not server.identity_files,
            sock=sock,
            timeout=timeout_s,
            banner_timeout=timeout_s,
            auth_timeout=timeout_s,
            channel_timeout=timeout_s,
        )
        transport = client.get_transport()
        assert transport is not None  # noqa: S101  # it has just been made
        transport.set_keepalive(KEEPALIVE_S)
    return client


def _open_socket(
    server: Server, configuration: Configuration, opened: ExitStack, jumps_left: int
) -> Any:
    """Open what the connection goes through: a socket, a jump host's channel, a command."""
    if server.proxy_jump:
        first, _, last = server.proxy_jump.rpartition(",")
        if not jumps_left:
            raise AccessError(f"more than {_MOST_JUMPS} servers to go through", lasting=True)
        jump = configuration.complete(_parse_jump(last, first or None, server))
        client = _connect(jump, configuration, opened, jumps_left - 1)
        transport = client.get_transport()
        assert transport is not None  # noqa: S101  # it has just been made
        return transport.open_channel(
            "direct-tcpip",
            (server.host, server.port or 22),
            ("127.0.0.1", 0),
            timeout=server.connect_timeout,
        )
    if server.proxy_command:
        return _Command(_expand(server.proxy_command, server))
    sock = socket.create_connection((server.host, server.port or 22), server.connect_timeout)
    opened.callback(sock.close)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        ("TCP_USER_TIMEOUT", PEER_TIMEOUT_S * 1000),
        ("TCP_KEEPIDLE", KEEPALIVE_S),
        ("TCP_KEEPINTVL", KEEPALIVE_S),
    ):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return sock


class _Command(paramiko.ProxyCommand):
    """A command whose streams are the connection; it is gone when the connection is closed.

    Several threads close it, and one reads: that one closes the streams, when it reads no more.
    """

    def __init__(self, command_line: str) -> None:
        super().__init__(command_line)
        self._reader: threading.Thread | None = None
        self._closing = threading.Lock()

    def recv(self, size: int) -> bytes:
        """Give what there is; at the end b"" (the library's own would ask for more for ever)."""
        self._reader = threading.current_thread()
        assert self.process.stdout is not None  # noqa: S101  # it is a pipe
        fd = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(None if self.timeout is None else self.timeout * 1000):
            raise TimeoutError
        return os.read(fd, size)

    def send(self, content: Buffer) -> int:
        """Send it.

        Raises:
            OSError: If the command has ended.
        """
        try:
            return super().send(content)
        except ValueError as exc:
            raise OSError("the command of the connection has ended") from exc

    def close(self) -> None:
        """End the command; return when it is gone."""
        with self._closing:
            with suppress(ProcessLookupError):
                super().close()
            self.process.wait()
            if self._reader in (None, threading.current_thread()):
                for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
                    if stream is not None:
                        with suppress(BrokenPipeError):  # what it was not told
                            stream.close()


def _parse_jump(text: str, before: str | None, target: Server) -> Server:
    """Read ``[user@]host[:port]``; what is to be known of it is as for the target."""
    user, _, address = text.rpartition("@")
    host, _, port = address.rpartition(":") if ":" in address else (address, "", "")
    if not host or (port and not port.isdigit()):
        raise AccessError(f"proxy_jump {text!r} is no [user@]host[:port]", lasting=True)
    return Server(
        name=host,
        host=host,
        port=int(port) if port else None,
        user=user or None,
        keyfile=target.keyfile,
        passphrase=target.passphrase,
        known_hosts=target.known_hosts,
        host_keys=target.host_keys,
        connect_timeout=target.connect_timeout,
        proxy_jump=before,
    )


def _expand(command: str, server: Server) -> str:
    """Put the server into a `ProxyCommand`; paramiko has done so with one of the configuration."""
    for sign, value in (("%h", server.host), ("%p", str(server.port)), ("%r", server.user or "")):
        command = command.replace(sign, shlex.quote(value))
    return command


def _load_key(server: Server) -> paramiko.PKey | None:
    if server.keyfile is None:
        return None
    where = f"the key file {server.keyfile}"
    try:
        # Bytes, whatever its annotations say.
        password: Any = server.passphrase.encode() if server.passphrase else None
        return paramiko.PKey.from_path(server.keyfile, password)
    except FileNotFoundError as exc:
        raise AccessError(f"{where} is not there", lasting=True) from exc
    except paramiko.PasswordRequiredException as exc:
        raise AccessError(f"{where} is encrypted: say its passphrase", lasting=True) from exc
    except OSError as exc:
        raise AccessError(f"{where} cannot be read: {exc}", lasting=True) from exc
    except (paramiko.SSHException, ValueError, TypeError) as exc:
        # Whatever the format, the library says this in another way each time.
        if server.passphrase:
            raise AccessError(f"{where}: wrong passphrase? ({exc})", lasting=True) from exc
        if "password" in str(exc).lower() or "passphrase" in str(exc).lower():
            raise AccessError(f"{where} is encrypted: say its passphrase", lasting=True) from exc
        raise AccessError(f"{where} is no key: {exc}", lasting=True) from exc


# --- host keys ---------------------------------------------------------------------------------


def _known_hosts_files(server: Server) -> list[str]:
    if server.known_hosts:
        return [server.known_hosts]
    return [os.path.expanduser(path) for path in DEFAULT_KNOWN_HOSTS]


def _load_known_hosts(client: paramiko.SSHClient, server: Server) -> None:
    for path in _known_hosts_files(server):
        try:
            client.load_system_host_keys(path)
        except FileNotFoundError:
            continue  # nobody is known by it


class _UnknownHost(paramiko.MissingHostKeyPolicy):
    """Refuses an unknown host with the line to add; adds it only where that was asked for."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def missing_host_key(
        self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey
    ) -> None:
        server = self._server
        path = _known_hosts_files(server)[0]
        if server.host_keys != "accept-new":
            raise AccessError(_unknown_words(server, key, path), lasting=True)
        os.makedirs(os.path.dirname(path) or ".", 0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with open(fd, "ab") as file:
            file.write(f"{_line(server, key)}\n".encode())


def _line(server: Server, key: paramiko.PKey) -> str:
    return f"{server.key_name} {key.get_name()} {key.get_base64()}"


def _fingerprint(key: paramiko.PKey) -> str:
    digest = hashlib.sha256(key.asbytes()).digest()
    return f"SHA256:{base64.b64encode(digest).rstrip(b'=').decode()}"


def _unknown_words(server: Server, key: paramiko.PKey, path: str) -> str:
    return (
        f"its host key is not known ({key.get_name()} {_fingerprint(key)}). If that is the right "
        f"one, add this line to {path}:\n{_line(server, key)}"
    )


def _changed_words(server: Server, exc: paramiko.BadHostKeyException) -> str:
    files = " or ".join(_known_hosts_files(server))
    return (
        f"its host key has changed: it shows {exc.key.get_name()} {_fingerprint(exc.key)}, and "
        f"{_fingerprint(exc.expected_key)} is known. Somebody may be in between. If the machine is "
        f"a new one, put this line in the place of the old one in {files}:\n"
        f"{_line(server, exc.key)}"
    )


@contextmanager
def _explained(server: Server) -> Iterator[None]:
    """Translate what the library raises."""
    try:
        yield
    except paramiko.BadHostKeyException as exc:
        raise AccessError(_changed_words(server, exc), lasting=True) from exc
    except paramiko.AuthenticationException as exc:
        who = f"as {server.user}"
        with_what = f" with {server.keyfile}" if server.keyfile else ""
        raise AccessError(f"cannot log in {who}{with_what}: {exc}", lasting=True) from exc
    except paramiko.ssh_exception.NoValidConnectionsError as exc:
        raise AccessError(f"cannot be reached: {exc}", lasting=False) from exc
    except paramiko.ProxyCommandFailure as exc:
        raise AccessError(f"its proxy command failed: {exc}", lasting=False) from exc
    except socket.gaierror as exc:
        raise AccessError(f"no such host: {exc.strerror}", lasting=True) from exc
    except TimeoutError as exc:
        within = f"no answer within {server.connect_timeout:g} s"
        raise AccessError(within, lasting=False) from exc
    except (paramiko.SSHException, EOFError) as exc:
        words = str(exc) or type(exc).__name__
        if "banner" in words or "No existing session" in words or isinstance(exc, EOFError):
            # Also a server with too many logins under way at once (MaxStartups).
            words = f"no SSH server answered within {server.connect_timeout:g} s ({words})"
        lasting = "authentication" in words.lower()
        raise AccessError(words, lasting=lasting) from exc
    except OSError as exc:
        raise AccessError(f"cannot be reached: {exc.strerror or exc}", lasting=False) from exc
