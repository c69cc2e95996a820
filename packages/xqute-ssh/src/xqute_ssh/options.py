"""What users say of servers, checked, and completed from an ssh configuration. Pure."""

from __future__ import annotations

import getpass
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xqute import Resources
from xqute.errors import ConfigError
from xqute.machine import QUEUE_ONLY

__all__ = ["LATER_KEYWORDS", "Server", "complete", "impossible", "parse_seconds", "parse_servers"]

#: Keywords of schedulers that ran the client program `ssh`; they mean nothing here.
LATER_KEYWORDS = ("ssh", "ctrl_persist", "ctrl_dir")

DEFAULT_PORT = 22
DEFAULT_CONNECT_TIMEOUT_S = 20.0
DEFAULT_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts")

#: What `StrictHostKeyChecking` of an ssh configuration means; "no" accepts no changed key here.
_HOST_KEY_CHECKING: Mapping[str, str] = {
    "yes": "strict",
    "ask": "strict",
    "accept-new": "accept-new",
    "no": "accept-new",
    "off": "accept-new",
}


class Server(NamedTuple):
    """One machine that jobs run on. None: as the ssh configuration says, or as ssh does.

    Attributes:
        name: What the user calls it; also how the ssh configuration is asked about it.
        host: Its address.
        port: Its port.
        user: Who logs in.
        keyfile: The private key; None: the agent's, and the configuration's or the usual ones.
        passphrase: Of the key.
        known_hosts: The file with its host key; None: the usual ones.
        host_keys: "strict": its key must be known. "accept-new": an unknown one is added there.
        slots: How many jobs at once; None: an even share of the scheduler's forks.
        connect_timeout: Seconds until a connection must be there, and the same for logging in.
        proxy_jump: Servers to go through, as for `ssh -J`.
        proxy_command: A command whose streams are the connection.
    """

    name: str
    host: str
    port: int | None = None
    user: str | None = None
    keyfile: str | None = None
    passphrase: str | None = None
    known_hosts: str | None = None
    host_keys: str | None = None
    slots: int | None = None
    connect_timeout: float | None = None
    proxy_jump: str | None = None
    proxy_command: str | None = None
    identity_files: tuple[str, ...] = ()
    host_key_alias: str | None = None

    def __repr__(self) -> str:
        """Say which it is, and nothing that is secret."""
        return f"<Server {self.name!r}: {self.address}>"

    @property
    def address(self) -> str:
        """``user@host:port``, of a server that is complete; the end of its jobs' ids."""
        return f"{self.user}@{self.host}:{self.port}"

    @property
    def key_name(self) -> str:
        """What its host key is called in a file of known hosts."""
        name = self.host_key_alias or self.host
        return name if self.port in (None, DEFAULT_PORT) else f"[{name}]:{self.port}"


_KEYWORDS = frozenset(Server._fields) - {"name", "identity_files", "host_key_alias"}


def parse_servers(servers: Any) -> list[Server]:
    """Give the servers that a user names: names, also in one string, or options by name.

    Raises:
        ConfigError: If there is none, one is named twice, or an option makes no sense.
    """
    if not servers:
        raise ConfigError(
            "The ssh scheduler needs servers: servers=['host', ...], or {'name': {'host': ..., "
            "'user': ..., 'port': ..., 'keyfile': ...}, ...}"
        )
    if isinstance(servers, str):
        servers = [name.strip() for name in servers.split(",") if name.strip()]
    if not isinstance(servers, Mapping):
        if not isinstance(servers, Sequence):
            raise ConfigError(f"servers is a list of names, or a dict of options: {servers!r}")
        if len(set(map(str, servers))) < len(servers):
            raise ConfigError(f"servers names one twice: {', '.join(map(str, servers))}")
        servers = {str(name): {} for name in servers}
    return [_parse_server(str(name), options or {}) for name, options in servers.items()]


def _parse_server(name: str, options: Any) -> Server:
    if not isinstance(options, Mapping):
        raise ConfigError(f"Server {name!r}: its options are no dict")
    unknown = [str(key) for key in options if key not in _KEYWORDS]
    if unknown:
        import difflib

        close = difflib.get_close_matches(unknown[0], _KEYWORDS, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"Server {name!r}: there is no option {unknown[0]!r}{hint}")
    user, _, host = name.rpartition("@")
    if not host or host.startswith("-") or any(char.isspace() for char in host):
        raise ConfigError(f"Server {name!r}: that is no name of a host")
    given = {"host": host, **({"user": user} if user else {}), **options}
    given = {key: value for key, value in given.items() if value is not None}
    for key, least in (("port", 1), ("slots", 1), ("connect_timeout", 0.001)):
        if key in given:
            given[key] = _parse_number(name, key, given[key], least)
    for key in ("keyfile", "known_hosts"):
        if key in given:
            given[key] = os.path.expanduser(os.fspath(given[key]))
    if given.get("host_keys", "strict") not in ("strict", "accept-new"):
        raise ConfigError(f"Server {name!r}: host_keys is 'strict' or 'accept-new'")
    return Server(name=name, **given)


def _parse_number(name: str, key: str, value: Any, least: float) -> Any:
    """Read a number: a whole one where the least is one."""
    try:
        number = type(least)(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise ConfigError(f"Server {name!r}: {key} is a number from {least:g}: {value!r}")
    return number


def parse_seconds(name: str, value: Any) -> float:
    """Read a number of seconds over 0, as a keyword of the scheduler may be given.

    Raises:
        ConfigError: If it is none.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{name} must be a number of seconds over 0: {value!r}")
    return seconds


def complete(server: Server, config: Mapping[str, Any]) -> Server:
    """Fill in what the user has not said, from what the ssh configuration says of the server.

    Args:
        server: The server.
        config: Lower-case option names and values, as paramiko's ``SSHConfig.lookup`` gives them.

    Raises:
        ConfigError: If the configuration makes no sense.
    """
    port = server.port or _parse_number(server.name, "Port", config.get("port", DEFAULT_PORT), 1)
    timeout = config.get("connecttimeout")
    if server.connect_timeout is not None:
        timeout = server.connect_timeout
    known_hosts = config.get("userknownhostsfile", "").split()
    checking = config.get("stricthostkeychecking", "ask").lower()
    # An alias of the configuration has its address there; who names a host has said it himself.
    named_itself = server.host == server.name.rpartition("@")[2]
    known = server.known_hosts or (os.path.expanduser(known_hosts[0]) if known_hosts else None)
    return server._replace(
        host=config.get("hostname", server.host) if named_itself else server.host,
        port=port,
        user=server.user or config.get("user") or getpass.getuser(),
        known_hosts=known,
        host_keys=server.host_keys or _HOST_KEY_CHECKING.get(checking, "strict"),
        connect_timeout=float(timeout) if timeout else DEFAULT_CONNECT_TIMEOUT_S,
        proxy_jump=server.proxy_jump or _unless_none(config.get("proxyjump")),
        proxy_command=server.proxy_command or _unless_none(config.get("proxycommand")),
        identity_files=tuple(map(os.path.expanduser, config.get("identityfile", ()))),
        host_key_alias=config.get("hostkeyalias"),
    )


def _unless_none(value: str | None) -> str | None:
    return None if value is None or value.lower() == "none" else value


def impossible(wanted: Resources) -> str:
    """Say why no server can ever run a job, whichever it is; empty: one may."""
    for name in QUEUE_ONLY:
        if getattr(wanted, name) is not None:
            return f"resources: {name} means nothing to servers without a queue"
    if wanted.nodes > 1:
        return f"resources: {wanted.nodes} nodes were asked for, and a job runs on one server"
    return ""
