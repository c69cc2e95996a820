"""All servers of a scheduler: who gets the next job, and whether any can be had."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from xqute import Job, Resources
from xqute.errors import ConfigError, SchedulerError

from .access import AccessError, Configuration
from .host import Host, Report
from .link import Setup
from .options import Server

__all__ = ["Fleet"]

#: Logins at once: sshd begins to refuse at ten (MaxStartups), whoever makes them.
_LOGINS_AT_ONCE = 4
_FEWEST_THREADS, _MOST_THREADS = 4, 32


class Fleet:
    """The servers, each with its connection, from `start` to `close`.

    Args:
        servers: The servers.
        config: The user's ssh configuration file; None: the usual one.
        workdir: The workdir as the servers see it.
        probe: A file in it, which is there if the workdir is the driver's own.
        may_stage: Whether a server may have a workdir of its own.
        report: Told of changes of jobs.
        log_interval_s: Seconds between two looks at the outputs of running jobs.

    Raises:
        AccessError: If the ssh configuration cannot be read.
        ConfigError: If what it says makes no sense.
    """

    def __init__(
        self,
        servers: Iterable[Server],
        *,
        config: str | None,
        workdir: str,
        probe: str,
        may_stage: bool,
        report: Report,
        log_interval_s: float,
    ) -> None:
        configuration = Configuration(config)
        complete = [configuration.complete(server) for server in servers]
        n_threads = min(max(2 * len(complete), _FEWEST_THREADS), _MOST_THREADS)
        self._executor = ThreadPoolExecutor(n_threads, "xqute-ssh")
        self._run_dir = f"{workdir}/.run"
        self._probe = probe
        self._may_stage = may_stage
        self._room = asyncio.Event()
        gate = asyncio.Semaphore(_LOGINS_AT_ONCE)
        self.hosts = [
            Host(
                server,
                configuration=configuration,
                executor=self._executor,
                gate=gate,
                build_setup=self._build_setup,
                report=report,
                changed=self._room.set,
                log_interval_s=log_interval_s,
            )
            for server in complete
        ]
        self._by_address = {host.server.address: host for host in self.hosts}
        self._tasks: list[asyncio.Task[None]] = []

    def _build_setup(self, server: Server) -> Setup:
        # The name is the user's, and may hold anything.
        name = "".join(char if char.isalnum() or char in "-_." else "_" for char in server.name)
        file = f"{self._run_dir}/ssh.{name}"
        may_stage = "1" if self._may_stage else ""
        return Setup(secrets.token_hex(8), file, self._run_dir, self._probe, may_stage)

    async def start(self) -> None:
        """Connect to all; return when there is one that can be used.

        Raises:
            SchedulerError: If none can be; with the reason for each.
        """
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(host.run()) for host in self.hosts]
        try:
            await self._wait_for_one()
        except BaseException:
            await self.close()
            raise

    async def _wait_for_one(self) -> None:
        while not any(host.is_usable for host in self.hosts):
            if all(host.connection.trouble is not None for host in self.hosts):
                words = "\n".join(
                    f"  {host.server.name}: {host.connection.trouble}" for host in self.hosts
                )
                raise SchedulerError(f"ssh: no server can be used:\n{words}")
            self._room.clear()
            await self._room.wait()

    async def close(self) -> None:
        """End all connections. Jobs run on."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for host in self.hosts:
            await host.close()
        self._executor.shutdown(wait=False)

    def host_of(self, jid: int | str | None) -> Host | None:
        """Give the server that a native id names; None: it is none of these."""
        return self._by_address.get(str(jid).partition("@")[2])

    def _fullness(self, host: Host, forks: int) -> float:
        """How full a server is: 1 if it can take no more."""
        return host.places.load / (host.server.slots or -(-forks // len(self.hosts)))

    async def acquire(
        self, job: Job, wanted: Resources | None, forks: int, within_s: float
    ) -> Host:
        """Wait for a place and take it, on the server that is least full.

        It is given back by `Places.free`.

        Args:
            job: For whom; it is told its graphics processors.
            wanted: What it asks for; None: nothing in particular.
            forks: How many jobs may be with all servers together.
            within_s: Seconds to wait where none can be reached.

        Raises:
            ConfigError: If no server has as much as it asks for.
            AccessError: If no server can be reached within `within_s`.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + within_s
        while True:
            usable = [host for host in self.hosts if host.is_usable]
            ready = [host for host in usable if not host.places.is_busy]
            free = [host for host in ready if self._fullness(host, forks) < 1]
            fitting = [host for host in free if host.try_fit(wanted) is not None]
            if fitting:
                host = min(fitting, key=lambda host: self._fullness(host, forks))
                host.places.take(job, wanted, host.try_fit(wanted) or ())
                return host
            if wanted is not None:
                self._check_possible(wanted)
            if usable:
                until_s = loop.time() + within_s
            elif loop.time() >= until_s:
                raise AccessError(self._troubles(), lasting=False)
            self._room.clear()
            try:
                async with asyncio.timeout_at(None if usable else until_s):
                    await self._room.wait()
            except TimeoutError:
                continue

    def _check_possible(self, wanted: Resources) -> None:
        machines = [host.machine for host in self.hosts]
        if not any(machine is None or machine.fit(wanted, ()) is not None for machine in machines):
            raise ConfigError(f"no server has as much as is asked for: {wanted}")

    def _troubles(self) -> str:
        troubles = [
            str(host.connection.trouble or f"{host.server.name}: set aside") for host in self.hosts
        ]
        return f"no server can be used now: {'; '.join(troubles)}"
