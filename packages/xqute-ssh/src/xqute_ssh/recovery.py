"""Attempts of which nobody knows whether a server has started them: found, or made impossible."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xqute.errors import SchedulerError

from .host import Host
from .link import LinkError

__all__ = ["Attempt", "find_attempts", "read_key"]

_KEY = r"xq-([0-9a-z]+)-([0-9]+)-([0-9]+)"


class Attempt(NamedTuple):
    """What a submission key stands for: the job's folder here and there, and the claims' tag."""

    local: str
    folder: str
    tag: str

    @property
    def is_leased(self) -> bool:
        """Whether it was about to be sent to a server, and nothing is known of it since."""
        try:
            return os.stat(f"{self.local}/job.start.{self.tag}").st_size == 0
        except FileNotFoundError:
            return False

    def revoke_lease(self) -> None:
        """Say here that it never starts, which is certain now."""
        with open(f"{self.local}/job.start.{self.tag}", "wb") as file:
            file.write(b"revoked driver\n")


def read_key(key: str, local: str, workdir: str) -> Attempt:
    """Read a submission key.

    Args:
        key: The key.
        local: The workdir.
        workdir: The workdir as servers see it.

    Raises:
        SchedulerError: If it is none of ours.
    """
    match = re.fullmatch(_KEY, key)
    if match is None:
        raise SchedulerError(f"ssh: {key!r} is no submission key")
    run_id, index, attempt = match.groups()
    return Attempt(f"{local}/{index}", f"{workdir}/{index}", f"{run_id}-{attempt}")


async def find_attempts(
    hosts: Sequence[Host], attempts: Mapping[str, Attempt]
) -> dict[str, int | str]:
    """Give the native ids of those attempts that a server has started.

    Those that none has are revoked on each server whose workdir is its own. (In a shared one, who
    asks can do that.) By then no earlier agent is at work any more that could start one. Attempts
    that this driver has sent, and still waits for, must not be among them.

    Raises:
        SchedulerError: If a server is away that may have one of them.
    """
    found: dict[str, int | str] = {}
    if not attempts:
        return found
    # What is leased from now on, this driver is just sending: it is not lost.
    leased = {key: attempt for key, attempt in attempts.items() if attempt.is_leased}
    try:
        for host in hosts:
            await _find(host, attempts, found)
        lost = [attempt for key, attempt in leased.items() if key not in found]
        for host in hosts:
            if lost and host.is_staged and not await _revoke(host, lost):
                raise SchedulerError(f"ssh: {host.server.address}: one may just be starting")
    except LinkError as exc:
        raise SchedulerError(f"ssh: {exc}") from exc
    for attempt in lost:
        attempt.revoke_lease()
    return found


async def _find(host: Host, attempts: Mapping[str, Attempt], found: dict[str, int | str]) -> None:
    """Note what a server has. Who sees an attempt run knows better than who sees its files alone.

    Both may be of one boot where servers are containers of one machine.
    """
    asked = [(attempt.folder, attempt.tag, "-", "-") for attempt in attempts.values()]
    for key, words in zip(attempts, await host.check(asked), strict=True):
        if words[0] == "running":
            found[key] = f"{words[1]}@{host.server.address}"
        elif words[0] in ("ended", "gone") or (words[0] == "rebooted" and host.is_staged):
            found.setdefault(key, f"-@{host.server.address}")


async def _revoke(host: Host, attempts: Sequence[Attempt]) -> bool:
    """See that attempts never start on a server; False: one has a claim there."""
    return await host.revoke([(attempt.folder, attempt.tag) for attempt in attempts])
