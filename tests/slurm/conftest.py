"""A private Slurm for the tests of this folder, and ways to hurt it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

SERVICE = Path(__file__).resolve().parents[1] / "services" / "slurm"


class Cluster:
    """A running Slurm with all its files in one folder."""

    def __init__(self, folder, **settings):
        self.folder = Path(folder)
        self.settings = {f"SLURM_{name.upper()}": str(value) for name, value in settings.items()}
        self.conf = self.folder / "slurm.conf"
        self.is_hurt = False

    def start(self):
        """Start what does not run."""
        self._run("start")

    def stop(self):
        self._run("stop")

    def _run(self, script):
        env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")} | self.settings
        log = self.folder / f"{script}.log"
        with log.open("w") as file:
            done = subprocess.run(
                [SERVICE / script, self.folder],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=env,
                timeout=100,
                check=False,
            )
        assert done.returncode == 0, log.read_text()

    def pid(self, name):
        return int((self.folder / "pid" / f"{name}.pid").read_text())

    def runs(self, name):
        """Whether a daemon runs; a zombie does not."""
        try:
            return bool(os.readlink(f"/proc/{self.pid(name)}/exe"))
        except FileNotFoundError:
            return False

    def signal(self, name, sig):
        self.is_hurt = True
        os.kill(self.pid(name), sig)

    def ask(self, *argv, check=True):
        """Run one of Slurm's programs; give what it prints."""
        self.is_hurt = self.is_hurt or argv[0] == "scontrol"
        done = subprocess.run(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=os.environ | {"SLURM_CONF": str(self.conf)},
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}"
        return done.stdout.strip()

    def names(self):
        """The names of all jobs that are pending or running."""
        return self.ask("squeue", "-h", "-r", "-o", "%j").splitlines()

    def heal(self):
        """Let go on what a test has stopped, start what it has killed, and cancel what is left."""
        if self.is_hurt:
            for file in (self.folder / "pid").glob("*.pid"):
                with suppress(ProcessLookupError):
                    os.kill(int(file.read_text()), signal.SIGCONT)
            self.start()
            self.is_hurt = False
        self.ask("scancel", "-u", "root", check=False)


@contextmanager
def running_cluster(folder, **settings):
    cluster = Cluster(folder, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


class Shims:
    """Programs that stand before Slurm's on PATH: they count, and do what a test wants."""

    def __init__(self, folder):
        self.folder = folder
        self.log = folder / "calls"
        folder.mkdir()
        self.real = {name: shutil.which(name) for name in ("sbatch", "squeue", "scancel", "sacct")}
        for name, program in self.real.items():
            self.put(name, f'exec {program} "$@"')

    def put(self, name, script):
        """Have this bash script run in the place of a program; calls are counted all the same."""
        path = self.folder / name
        new = self.folder / f".{name}"
        new.write_text(f'#!/bin/bash\necho {name} >>"{self.log}"\n{script}\n')
        new.chmod(0o755)
        new.rename(path)

    def count(self, name):
        """How often a program was called."""
        return self.log.read_text().splitlines().count(name) if self.log.exists() else 0


@pytest.fixture
def shims(tmp_path, monkeypatch):
    shims = Shims(tmp_path / "shims")
    monkeypatch.setenv("PATH", str(shims.folder), prepend=os.pathsep)
    return shims


@pytest.fixture(scope="session")
def slurm_service(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("slurm"), nodes=2, cpus=16) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_service, monkeypatch):
    """The cluster, which Slurm's programs and schedulers find; healed afterwards."""
    monkeypatch.setenv("SLURM_CONF", str(slurm_service.conf))
    yield slurm_service
    slurm_service.heal()


@pytest.fixture
def new_slurm(tmp_path_factory, monkeypatch):
    """Starts a cluster of other settings, for one test."""
    with ExitStack() as stack:

        def start(**settings):
            folder = tmp_path_factory.mktemp("slurm")
            cluster = stack.enter_context(running_cluster(folder, **settings))
            monkeypatch.setenv("SLURM_CONF", str(cluster.conf))
            return cluster

        yield start
