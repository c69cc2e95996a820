"""Containers: jobs of `true` beside a shell loop over the same program; how soon an end is told.

    python benchmarks/container.py [--jobs 100] [--rounds 3] [docker podman podman-socket apptainer]

Starts engines of its own, as root, with what `tests/services/container` installs, and removes them.
Loop and xqute take turns, two containers at a time; the last line of each is a ratio of medians.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from ends import Ends

from xqute import Xqute

SERVICES = Path(__file__).resolve().parents[1] / "tests" / "services" / "container"
PARALLEL = 2


def call(*argv: object) -> str:
    """Run a program; give its output."""
    done = subprocess.run(list(map(str, argv)), check=True, capture_output=True, text=True)
    return done.stdout


async def run_jobs(n: int, workdir: str, opts: dict[str, Any], ends: Ends) -> list[Any]:
    """Run `true` n times."""
    keywords = {"forks": PARALLEL, "plugins": [ends], "scheduler_opts": opts}
    async with Xqute("container", workdir=workdir, **keywords) as xq:
        for _ in range(n):
            await xq.feed(["true"])
    assert all(job.rc == 0 for job in xq.jobs)
    return xq.jobs


def loop(n: int, argv: list[str]) -> float:
    """Seconds of a shell's loop over a program."""
    began_s = time.perf_counter()
    subprocess.run(
        ["xargs", "-P", str(PARALLEL), "-I{}", *argv],
        input="\n".join(map(str, range(n))),
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began_s


def compare(name: str, n: int, rounds: int, argv: list[str], opts: dict[str, Any]) -> None:
    """Let the loop and xqute take turns, and tell of both."""
    loops, ours = [], []
    loop(2, argv)
    # One folder for all rounds, removed at the end: after a removal ext4 makes files slowly.
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            loops.append(loop(n, argv))
            began_s = time.perf_counter()
            asyncio.run(run_jobs(n, f"{folder}/{number}", opts, Ends()))
            ours.append(time.perf_counter() - began_s)
    mine, theirs = statistics.median(ours), statistics.median(loops)
    print(f"{name:14} loop {theirs:6.2f} s  xqute {mine:6.2f} s  ratio {mine / theirs:5.2f}")


def tell_latency(n: int, engine: list[str], opts: dict[str, Any]) -> None:
    """From the end of a container, as its engine dates it, to the hook."""
    ends = Ends()
    with tempfile.TemporaryDirectory() as folder:
        jobs = asyncio.run(run_jobs(n, f"{folder}/work", {**opts, "remove": False}, ends))
    late_ms = []
    for job in jobs:
        said = call(*engine, "inspect", "--format", "{{.State.FinishedAt}}", job.jid).strip()
        ended = datetime.fromisoformat(said[:26] + "+00:00").timestamp()
        late_ms.append(1000 * (ends.told_s[job.index] - ended))
        call(*engine, "rm", job.jid)
    print(
        f"{'':14} end to hook: median {statistics.median(late_ms):.1f} ms, max {max(late_ms):.1f}"
    )


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    every = ["docker", "podman", "podman-socket", "apptainer"]
    parser.add_argument("engines", nargs="*", default=every)
    asked = parser.parse_args()
    home = tempfile.mkdtemp(prefix="xq-")
    images = f"{home}/images"
    call(SERVICES / "images", images)
    image = "localhost/bash:1"
    load = os.getloadavg()[0]
    print(
        f"{asked.jobs} jobs of `true`, {PARALLEL} at a time, {asked.rounds} rounds, load {load:.1f}"
    )
    try:
        if "docker" in asked.engines:
            call(SERVICES / "start-docker", f"{home}/docker")
            url = f"unix://{home}/docker/docker.sock"
            docker = ["docker", "--host", url]
            call(*docker, "import", f"{images}/bash.tar", image)
            opts = {"image": image, "socket": url}
            argv = [*docker, "run", "--rm", image, "true"]
            compare("docker", asked.jobs, asked.rounds, argv, opts)
            tell_latency(min(asked.jobs, 40), docker, opts)
        if {"podman", "podman-socket"} & set(asked.engines):
            folder = f"{home}/podman"
            call(SERVICES / "podman-home", folder)
            podman = [f"{folder}/bin/podman"]
            call(*podman, "import", f"{images}/bash.tar", image)
            argv = [*podman, "run", "--rm", image, "true"]
            opts = {"image": image, "bin": podman[0]}
            if "podman" in asked.engines:
                compare("podman", asked.jobs, asked.rounds, argv, opts)
            if "podman-socket" in asked.engines:
                call(SERVICES / "start-podman", folder)
                socket = {**opts, "socket": f"{folder}/podman.sock"}
                compare("podman-socket", asked.jobs, asked.rounds, argv, socket)
        if "apptainer" in asked.engines:
            argv = ["apptainer", "exec", f"{images}/bash", "true"]
            opts = {"image": f"{images}/bash", "bin": "apptainer"}
            compare("apptainer", asked.jobs, asked.rounds, argv, opts)
    finally:
        for name in ("docker", "podman"):
            if os.path.exists(f"{home}/{name}"):
                call(SERVICES / f"stop-{name}", f"{home}/{name}")
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
