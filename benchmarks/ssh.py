"""Jobs of `true` over two private SSH servers: this backend, and GNU parallel with ControlMaster.

    python benchmarks/ssh.py [--jobs 1000] [--forks 8] [--rounds 3]

Both get the same servers (sshd on loopback), the same number of jobs at once, and do the same in
turns; the median round of each is told, and how long after its end a job's hook is called. All is
in memory where that can be: it is not the disk that is measured. The login shell has no `.bashrc`:
it would count a thousand times for one and twice for the other.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SERVICE = Path(__file__).resolve().parents[1] / "tests" / "services" / "ssh" / "sshd.py"

DRIVER = """
import json, sys, time
import xqute
task = json.loads(sys.argv[1])
began = time.perf_counter()
jobs = xqute.run([["true"]] * task["n"], scheduler="ssh", **task["keywords"])
took = time.perf_counter() - began
assert all(job.rc == 0 for job in jobs)
print(took)
"""

HEARS = """
import json, statistics, sys, time
import xqute
from xqute import plugin

class Hears:
    name = "hears"
    delays_ms = []

    @plugin.impl
    async def on_job_succeeded(self, scheduler, job):
        now = time.time()
        [claim] = job.metadir.glob("job.end.*")
        self.delays_ms.append((now - claim.stat().st_mtime) * 1000)

task = json.loads(sys.argv[1])
xqute.run([["true"]] * task["n"], scheduler="ssh", plugins=[Hears()], **task["keywords"])
print(statistics.median(Hears.delays_ms))
"""


def load_service() -> Any:
    """Import the module that starts servers."""
    spec = importlib.util.spec_from_file_location("sshd", SERVICE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_xqute(script: str, servers: list[Any], n: int, forks: int, folder: Path) -> float:
    """Give what a script says that runs jobs: see above."""
    options = {server.name: server.options() for server in servers}
    keywords = {"workdir": str(folder), "forks": forks, "scheduler_opts": {"servers": options}}
    argv = [sys.executable, "-c", script, json.dumps({"n": n, "keywords": keywords})]
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout)


def run_parallel(servers: list[Any], n: int, forks: int, folder: Path) -> float:
    """Give the seconds that GNU parallel takes, with connections that are there already."""
    folder.mkdir()
    config = folder / "config"
    config.write_text(
        "".join(
            f"Host {server.name}\n  HostName {server.address}\n  Port {server.port}\n"
            f"  IdentityFile {server.keys.user}\n  UserKnownHostsFile {server.keys.known_hosts}\n"
            f"  ControlMaster auto\n  ControlPath {folder}/%n\n  ControlPersist 60\n"
            for server in servers
        )
    )
    names = [server.name for server in servers]
    ssh = f"ssh -F {config}"
    for name in names:
        subprocess.run([*ssh.split(), name, "true"], check=True)
    logins = ",".join(f"{forks // len(names)}/{name}" for name in names)
    argv = ["parallel", "--will-cite", "--sshlogin", logins, "--ssh", ssh, "true", ":::"]
    began = time.perf_counter()
    environment = {**os.environ, "PARALLEL_SSH": ssh}
    subprocess.run([*argv, *map(str, range(n))], check=True, env=environment)
    took_s = time.perf_counter() - began
    for name in names:
        subprocess.run([*ssh.split(), "-O", "exit", name], check=True, capture_output=True)
    return took_s


def main() -> None:
    """Measure both in turns, and print the medians."""
    parser = argparse.ArgumentParser(description="Jobs of `true` over two SSH servers")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--forks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    service = load_service()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="xqute-ssh-", dir=memory) as name:
        folder = Path(name)
        keys = service.Keys(folder / "keys")
        lines = (f"SetEnv HOME={folder}",)
        servers = [
            service.Sshd(keys, name, max_sessions=100, lines=lines) for name in ("east", "west")
        ]
        try:
            for server in servers:
                server.start()
            measure(servers, arguments, folder)
        finally:
            for server in servers:
                server.stop()


def measure(servers: list[Any], arguments: argparse.Namespace, folder: Path) -> None:
    """Run both, in turns."""
    n, forks = arguments.jobs, arguments.forks
    rates: dict[str, list[float]] = {"xqute": [], "parallel": []}
    print(f"load {os.getloadavg()[0]:.1f}, {len(os.sched_getaffinity(0))} cores")
    for number in range(arguments.rounds):
        rates["xqute"].append(n / run_xqute(DRIVER, servers, n, forks, folder / f"x{number}"))
        rates["parallel"].append(n / run_parallel(servers, n, forks, folder / f"p{number}"))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        spread = f"{min(rates[name]):.0f} to {max(rates[name]):.0f}"
        print(f"{name:10} {rate:6.0f} jobs/s (of {arguments.rounds} rounds, {spread})")
    print(f"ratio      {medians['xqute'] / medians['parallel']:6.1f}")
    delay_ms = run_xqute(HEARS, servers, 40, 1, folder / "hears")
    print(f"end of a job to its hook, median of 40: {delay_ms:.1f} ms")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
