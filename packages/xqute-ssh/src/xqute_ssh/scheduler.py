"""The scheduler that runs jobs on other machines over SSH."""

from __future__ import annotations

import asyncio
import importlib
import os
import secrets
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from xqute import Job, Scheduler, SpecPath, logger
from xqute.errors import ConfigError, SchedulerError, SubmitError, XquteWarning
from xqute.scheduler import BackendState, Phase

from .options import LATER_KEYWORDS, impossible, parse_seconds, parse_servers

if TYPE_CHECKING:
    from .entry import Entry
    from .fleet import Fleet
    from .host import Host
    from .staging import Transfer

__all__ = ["SshScheduler"]

#: How long a submission waits for any server to come back before the run is told to hold others.
_PATIENCE_S = 30.0
_NO_LIMIT = 1 << 30
#: A script as long as this, or longer, goes as a file.
_LONG_SCRIPT_BYTES = 65536


class SshScheduler(Scheduler):
    """Runs jobs on servers, over one connection to each.

    The native job id is ``<pid>@<user>@<host>:<port>``. It is never trusted alone: a process is
    taken for a job only if the job's start claim, or the agent that started it, names its start
    time.

    Args:
        args: As for `Scheduler`.
        servers: Names, or options by name: host, port, user, keyfile, passphrase, known_hosts,
            host_keys, slots, connect_timeout, proxy_jump, proxy_command. What is not said is as the
            ssh configuration says.
        ssh_config: That file; None: the usual one.
        log_interval: Seconds between two looks at the outputs of running jobs, where the workdir is
            not shared.
        unacknowledged_timeout: Seconds until an attempt that was sent, and not acknowledged, to a
            server that is away is lost.
        config: As for `Scheduler`.

    Raises:
        ConfigError: If there is no server, or an option makes no sense (it is a ValueError, too).
    """

    name = "ssh"
    has_queue = False

    def __init__(
        self,
        *args: Any,
        servers: Any = None,
        ssh_config: str | os.PathLike[str] | None = None,
        log_interval: float = 1.0,
        unacknowledged_timeout: float = 600.0,
        **config: Any,
    ) -> None:
        later = [name for name in LATER_KEYWORDS if config.pop(name, None) is not None]
        if later:
            warnings.warn(
                f"The ssh scheduler needs no client program: {', '.join(later)} ignored",
                XquteWarning,
                stacklevel=2,
            )
        super().__init__(*args, **config)
        if not os.path.isabs(str(self.workdir.mounted)):
            raise ConfigError(f"mounted_workdir must be absolute: {self.workdir.mounted}")
        self.servers = parse_servers(servers)
        self.ssh_config = None if ssh_config is None else os.path.expanduser(os.fspath(ssh_config))
        self.log_interval = parse_seconds("log_interval", log_interval)
        self.unacknowledged_timeout = parse_seconds(
            "unacknowledged_timeout", unacknowledged_timeout
        )
        self._fleet: Fleet | None = None
        self._starting: asyncio.Task[Fleet] | None = None
        self._report: Callable[[Job, BackendState], None] | None = None
        self._entries: dict[Job, Entry] = {}

    @property
    def leaves_events(self) -> bool:
        """Whether jobs announce changes: no, the agents do."""
        return False

    # --- connections ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect to the servers; returns when there is one that can be used.

        Raises:
            SchedulerError: If none can be; with the reason for each.
        """
        await self._get_fleet()

    async def _get_fleet(self) -> Fleet:
        if self._fleet is not None:
            return self._fleet
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_task(self._start())
        return await asyncio.shield(self._starting)

    async def _start(self) -> Fleet:
        try:
            self._fleet = await self._open_fleet()
        finally:
            self._starting = None
        return self._fleet

    async def _open_fleet(self) -> Fleet:
        # The SSH library takes a fifth of a second to import.
        await asyncio.to_thread(importlib.import_module, f"{__package__}.fleet")
        from .access import AccessError
        from .fleet import Fleet

        probe = f"ssh-probe.{secrets.token_hex(8)}"
        self._probe = f"{self.local_workdir}/.run/{probe}"
        _make_probe(self._probe)
        try:
            fleet = Fleet(
                self.servers,
                config=self.ssh_config,
                workdir=str(self.workdir.mounted),
                probe=f"{self.workdir.mounted}/.run/{probe}",
                may_stage=str(self.workdir.mounted) != self.local_workdir,
                report=self._tell,
                log_interval_s=self.log_interval,
            )
            await fleet.start()
        except AccessError as exc:
            self._remove_probe()
            raise SchedulerError(f"ssh: {exc}") from exc
        except BaseException:
            self._remove_probe()
            raise
        return fleet

    def _remove_probe(self) -> None:
        with suppress(FileNotFoundError):
            os.unlink(self._probe)

    async def close(self) -> None:
        """End the connections. Jobs run on."""
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        fleet, self._fleet = self._fleet, None
        self._report = None
        self._entries.clear()
        if fleet is not None:
            await fleet.close()
            self._remove_probe()

    def watch(self, report: Callable[[Job, BackendState], None]) -> None:
        """Tell `report` of each start and end, at once."""
        self._report = report

    def _tell(self, job: Job, state: BackendState) -> None:
        if state.phase is not Phase.RUNNING:
            entry = self._entries.get(job)
            if entry is not None and entry.is_over and entry.concluded.done():
                del self._entries[job]
        if self._report is not None:
            self._report(job, state)

    # --- submission ----------------------------------------------------------------------------

    async def submit_job(self, job: Job) -> int | str:
        """Start a job on the server that is least full; give its native id.

        Raises:
            SubmitError: If it was not started, and never will be by this.
            InvalidJobError: If its inputs or outputs make no sense.
        """
        from .host import RefusedError
        from .link import LinkError

        fleet = await self._get_fleet()
        while True:
            host = await self._acquire(fleet, job)
            try:
                return await self._start_on(host, job)
            except LinkError:
                continue  # nothing was sent: to another one
            except RefusedError as exc:
                host.places.note_refusal(str(exc))
            finally:
                host.places.end_starting()

    async def _start_on(self, host: Host, job: Job) -> str:
        """Start a job on a server on which it has a place; that is given back if it fails."""
        try:
            entry = await self._prepare(host, job)
        except BaseException:
            host.places.free(job)
            raise
        return await self._send(host, entry)

    async def _acquire(self, fleet: Fleet, job: Job) -> Host:
        """Wait for a place on a server that has what the job asks for."""
        from .access import AccessError

        wanted = None
        if not (self.resources is None and job.resources is None):
            wanted = self.resources_of(job)
            if why := impossible(wanted):
                raise SubmitError(why)
        # Without a run, nobody but the caller counts.
        forks = self.forks if self.driver is not None else _NO_LIMIT
        try:
            return await fleet.acquire(job, wanted, forks, _PATIENCE_S)
        except AccessError as exc:
            raise SubmitError(str(exc), transient=True) from exc
        except ConfigError as exc:
            raise SubmitError(str(exc)) from exc

    async def _prepare(self, host: Host, job: Job) -> Entry:
        """Make an attempt ready to be sent, its inputs brought.

        Raises:
            SubmitError: If an input is missing here.
            RefusedError: If the server does not take them.
            LinkError: If the connection is lost.
        """
        from .files import FilesError
        from .host import RefusedError
        from .staging import Transfer

        script = self.wrapped_job_script(job)
        entry = self._make_entry(host, job)
        entry.remote_script = str(script.mounted)
        entry.staged = host.is_staged
        if not entry.staged:
            return entry
        inputs = self._plan(entry, job.inputs)
        entry.outputs = self._plan(entry, job.outputs)
        entry.script = job.read_file(script.name)
        if entry.script is None or len(entry.script) >= _LONG_SCRIPT_BYTES:
            # That is all that is read of it.
            entry.script = None
            inputs.append(Transfer(f"{job.local_dir}/{script.name}", entry.remote_script))
        try:
            for transfer in inputs:
                await host.bring(transfer)
        except FilesError as exc:
            if exc.is_local:
                raise SubmitError(f"An input cannot be brought: {exc}") from exc
            raise RefusedError(str(exc)) from exc
        return entry

    def _plan(self, entry: Entry, paths: Sequence[str | os.PathLike[str]]) -> list[Transfer]:
        from .staging import plan_transfers

        cwd = self.cwd if entry.job.cwd is None else entry.job.cwd
        # Without one, a job whose workdir is the server's own runs in its folder.
        directory = os.path.join(entry.folder, "" if cwd is None else os.fspath(cwd))
        workdir = SpecPath(os.path.dirname(entry.job.local_dir), os.path.dirname(entry.folder))
        return plan_transfers(paths, workdir=workdir, cwd=os.path.normpath(directory))

    def _make_entry(self, host: Host, job: Job) -> Entry:
        from .entry import Entry

        return Entry(
            host.connection.next_number(),
            job,
            self.claim_tag(job),
            self.mounted_dir(job),
            host,
        )

    async def _send(self, host: Host, entry: Entry) -> str:
        self._entries[entry.job] = entry
        try:
            async with asyncio.timeout(self.unacknowledged_timeout):
                return await host.start(entry)
        except TimeoutError:
            host.give_up(entry, f"never acknowledged by server {host.server.name!r}, which is away")
            return entry.jid
        except BaseException:
            if self._entries.get(entry.job) is entry and entry.number not in host.entries:
                del self._entries[entry.job]
            raise

    async def find_submitted(self, keys: Iterable[str]) -> Mapping[str, int | str]:
        """Find attempts whose id was not heard, by their claims on the servers.

        What no server has started, and none is about to, is revoked there and here.

        Raises:
            SchedulerError: If a server is away that may have one of them.
        """
        from .recovery import find_attempts, read_key

        ours = {(entry.folder, entry.tag): entry for entry in self._entries.values()}
        found: dict[str, int | str] = {}
        attempts = {}
        for key in keys:
            attempt = read_key(key, self.local_workdir, str(self.workdir.mounted))
            entry = ours.get((attempt.folder, attempt.tag))
            if entry is None:
                attempts[key] = attempt
            elif entry.accepted.done():
                found[key] = entry.jid
            else:
                raise SchedulerError(f"ssh: {entry} is on its way")
        return found | await find_attempts((await self._get_fleet()).hosts, attempts)

    async def reattach(self, jobs: Sequence[Job]) -> None:
        """Take over jobs that an earlier driver has started, as far as their servers are there."""
        fleet = await self._get_fleet()
        jids = [str(job.jid) for job in jobs if job.jid is not None and not fleet.host_of(job.jid)]
        for address, n_jobs in Counter(jid.partition("@")[2] for jid in jids).items():
            logger.warning(
                "ssh: %d jobs of an earlier run are on %s, which is none of these servers: "
                "they are waited for",
                n_jobs,
                address,
            )
        await self.poll_jobs(jobs)

    # --- what is true --------------------------------------------------------------------------

    async def job_is_running(self, job: Job) -> bool:
        """Tell whether a job is there, as its server says.

        Raises:
            SchedulerError: If its server is away, or is none of these.
        """
        state = (await self.poll_jobs([job])).get(job)
        if state is None:
            raise SchedulerError(f"ssh: the server of {job!r} does not answer")
        return state.phase in (Phase.PENDING, Phase.RUNNING)

    async def poll_jobs(self, jobs: Sequence[Job]) -> Mapping[Job, BackendState]:
        """Ask each server once about its jobs; those of one that is away are unknown."""
        states: dict[Job, BackendState] = {}
        asked: defaultdict[Host, list[Entry]] = defaultdict(list)
        fleet = await self._get_fleet()
        for job in jobs:
            entry = self._entries.get(job)
            if entry is None:
                host = fleet.host_of(job.jid)
                if job.jid is None:
                    states[job] = BackendState(Phase.GONE)
                elif host is not None:
                    asked[host].append(self._make_foreign(host, job))
            elif entry.concluded.done():
                states[job] = entry.concluded.result()
            elif not entry.accepted.done():
                states[job] = BackendState(Phase.PENDING)
            elif entry.is_over:
                states[job] = BackendState(Phase.RUNNING)  # until its files are here
            else:
                asked[entry.host].append(entry)
        answers = await asyncio.gather(*[self._check(host, asked[host]) for host in asked])
        for answer in answers:
            states |= answer
        return states

    def _make_foreign(self, host: Host, job: Job) -> Entry:
        """What is known of a job that another driver has started, or that has ended long ago."""
        entry = self._make_entry(host, job)
        entry.staged = host.is_staged
        entry.set_process(str(job.jid).partition("@")[0], "-")
        return entry

    async def _check(self, host: Host, entries: list[Entry]) -> dict[Job, BackendState]:
        from .link import LinkError

        try:
            answers = await host.check([entry.identity for entry in entries])
            pairs = zip(entries, answers, strict=True)
            return {entry.job: await self._judge(host, entry, words) for entry, words in pairs}
        except LinkError as exc:
            logger.debug("ssh: cannot ask about %d jobs: %s", len(entries), exc)
            return {}

    async def _judge(self, host: Host, entry: Entry, words: list[str]) -> BackendState:
        """Make a state of what the agent says of an attempt."""
        if entry.concluded.done():
            return entry.concluded.result()  # it was told meanwhile
        state = host.state_of(words)
        if entry.accepted.done():
            if state.phase is not Phase.RUNNING:
                # Its end is just being told; or who was to tell it is dead.
                host.miss(entry)
            return BackendState(Phase.RUNNING)
        if state.phase is Phase.RUNNING:
            entry.set_process(words[1], words[2])
        # It may have ended while this was asked: its files were here, and are elsewhere by now.
        was_home = entry.job.outcome is not None or entry.tag != self.claim_tag(entry.job)
        is_home = not entry.staged or was_home or entry.is_home
        if state.phase is Phase.GONE or (state.phase is Phase.ENDED and is_home):
            return state
        entry.outputs = self._plan(entry, entry.job.outputs) if entry.staged else []
        self._entries[entry.job] = entry
        host.adopt(entry)
        return state if state.phase is Phase.RUNNING else await host.until_home(entry)

    # --- killing -------------------------------------------------------------------------------

    async def kill_job(self, job: Job) -> None:
        """End a job: TERM, the grace period, KILL; return when it is gone."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self.kill_grace_s
        pause_s = 0.01
        await self.kill_jobs([job])
        while await self.job_is_running(job):
            if loop.time() > deadline_s:
                await self.kill_jobs([job], force=True)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.2)

    async def kill_jobs(self, jobs: Sequence[Job], force: bool = False) -> None:
        """Send TERM to the process groups of jobs, or KILL to their sessions; once per server."""
        from .link import LinkError

        strangers = [job for job in jobs if job not in self._entries and job.jid is not None]
        if strangers:
            await self.poll_jobs(strangers)
        doomed: defaultdict[Host, list[Entry]] = defaultdict(list)
        for job in jobs:
            entry = self._entries.get(job)
            if entry is None or entry.is_over or entry.pid is None:
                continue
            entry.killed = True
            doomed[entry.host].append(entry)
        signal = "KILL" if force else "TERM"
        results = await asyncio.gather(
            *[host.killing.kill(signal, entries) for host, entries in doomed.items()],
            return_exceptions=True,
        )
        errors = [SchedulerError(str(exc)) for exc in results if isinstance(exc, LinkError)]
        others = [exc for exc in results if isinstance(exc, Exception)]
        if others:
            raise ExceptionGroup("ssh: not all servers could be asked to kill", errors or others)


def _make_probe(path: str) -> None:
    """Make the file by which servers know the workdir for the driver's.

    Raises:
        OSError: If it cannot be made.
    """
    os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
