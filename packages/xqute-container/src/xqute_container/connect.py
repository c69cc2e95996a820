"""Which way an engine is reached: its socket where that will do, else its program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence

from .client import Client
from .options import Runtime
from .spec import LABEL_WORKDIR

__all__ = ["connect", "find_address"]

#: What the SDK can speak to; other addresses (ssh://) are left to the program.
_SDK_SCHEMES = ("unix://", "tcp://", "http://", "https://")


def connect(
    runtime: Runtime,
    binary: str,
    *,
    socket: str | bool | None,
    bin_args: Sequence[str],
    labels: Mapping[str, str],
) -> Client:
    """Reach an engine.

    Args:
        runtime: What it is.
        binary: Its program.
        socket: The path or URL of its socket; None: look for it; False: use the program.
        bin_args: Options for the program, which therefore is used.
        labels: What all containers of this run's folder have.

    Raises:
        SchedulerError: If nobody answers.
    """
    if os.sep in binary:
        binary = os.path.abspath(binary)  # it is run from elsewhere, too
    if runtime is Runtime.APPTAINER:
        from .apptainer_client import ApptainerClient

        return ApptainerClient(binary, bin_args, labels[LABEL_WORKDIR])
    address = None if socket is False else find_address(runtime, socket)
    if address is not None and not bin_args and address.startswith(_SDK_SCHEMES):
        from .socket_client import SocketClient

        return SocketClient(address, dict(labels))
    from .command_client import CommandClient

    given = _build_address_options(runtime, address) if isinstance(socket, str) and address else ()
    return CommandClient([binary, *given], runtime, dict(labels), bin_args)


def find_address(
    runtime: Runtime,
    socket: str | bool | None,
    environ: Mapping[str, str] = os.environ,
) -> str | None:
    """Give the URL of an engine's socket; None: there is none, or the program is the better way.

    Podman's program takes less time than its service, so its socket is used only if it is named, by
    `socket` or by CONTAINER_HOST.
    """
    if isinstance(socket, str):
        return socket if "://" in socket else f"unix://{os.path.abspath(socket)}"
    variable = "CONTAINER_HOST" if runtime is Runtime.PODMAN else "DOCKER_HOST"
    if environ.get(variable):
        return environ[variable]
    if runtime is Runtime.DOCKER or socket is True:
        for path in _usual_sockets(runtime, environ):
            if os.path.exists(path):
                return f"unix://{path}"
    return None


def _usual_sockets(runtime: Runtime, environ: Mapping[str, str]) -> Iterator[str]:
    """Give where engines have their sockets: the user's own first for Podman, last for Docker."""
    own = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if runtime is Runtime.PODMAN:
        if os.getuid() != 0:
            yield f"{own}/podman/podman.sock"
        yield "/run/podman/podman.sock"
    else:
        yield "/var/run/docker.sock"
        yield f"{own}/docker.sock"


def _build_address_options(runtime: Runtime, address: str) -> tuple[str, ...]:
    return ("--remote", "--url", address) if runtime is Runtime.PODMAN else ("--host", address)
