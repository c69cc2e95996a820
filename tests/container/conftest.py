"""Real container engines, started once for all tests of this folder, with images made here."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

SERVICES = Path(__file__).resolve().parents[1] / "services" / "container"
IMAGES = ("bash", "busybox")


def run(*argv, timeout_s=300, **keywords):
    """Run a program; give its output; fail with its words."""
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        **keywords,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Engine:
    """A container engine of these tests.

    Attributes:
        options: What to give ContainerScheduler.
    """

    def __init__(self, name, folder, program, **options):
        self.name = name
        self.folder = folder
        self.program = program
        self.options = {"image": "localhost/bash:1", "bin": program[0], **options}
        # For drivers in processes of their own.
        os.environ[f"TEST_ENGINE_{name}"] = json.dumps(self.options)

    def __call__(self, *words):
        return run(*self.program, *words)

    def containers(self):
        """Names and states of all containers."""
        return self("ps", "--all", "--format", "{{.Names}} {{.Status}}").splitlines()

    def pid(self):
        return int(Path(self.folder, "dockerd.pid").read_text())

    def restart(self):
        """Start it, or its service, again after it was ended."""
        kind = "podman" if self.name.startswith("podman") else "docker"
        run(SERVICES / f"start-{kind}", self.folder)

    def remove_all(self):
        names = self("ps", "--all", "--quiet").split()
        if names:  # some may be about to be removed; whoever must know looks again
            argv = [*self.program, "rm", "--force", *names]
            subprocess.run(argv, capture_output=True, timeout=120, check=False)


@pytest.fixture(scope="session")
def short_folder():
    """A folder with a short name: a socket's path has room for a hundred characters."""
    folder = tempfile.mkdtemp(prefix="xq-")
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def images(short_folder):
    folder = f"{short_folder}/images"
    run(SERVICES / "images", folder)
    return folder


@pytest.fixture(scope="session")
def start_docker(images):
    """Start a Docker in a folder, with our images, and stop it at the end; gives the engine."""
    folders = []

    def start(folder):
        folders.append(folder)
        run(SERVICES / "start-docker", folder)
        url = f"unix://{folder}/docker.sock"
        engine = Engine(Path(folder).name, folder, ["docker", "--host", url], socket=url)
        for image in IMAGES:
            engine("import", f"{images}/{image}.tar", f"localhost/{image}:1")
        return engine

    yield start
    for folder in folders:
        run(SERVICES / "stop-docker", folder)


@pytest.fixture(scope="session")
def docker(short_folder, start_docker):
    return start_docker(f"{short_folder}/docker")


@pytest.fixture(scope="session")
def podman(short_folder, images):
    folder = f"{short_folder}/podman"
    try:
        run(SERVICES / "podman-home", folder)
        engine = Engine("podman", folder, [f"{folder}/bin/podman"])
        for image in IMAGES:
            engine("import", f"{images}/{image}.tar", f"localhost/{image}:1")
        run(SERVICES / "start-podman", folder)
        yield engine
    finally:
        run(SERVICES / "stop-podman", folder)


@pytest.fixture(scope="session")
def podman_socket(podman):
    return Engine(
        "podman_socket",
        podman.folder,
        podman.program,
        socket=f"{podman.folder}/podman.sock",
    )


@pytest.fixture(scope="session")
def docker_program(docker):
    """Docker by its program, because options are given."""
    return Engine(
        "docker_program",
        docker.folder,
        docker.program,
        socket=docker.options["socket"],
        bin_args=["--env=ASKED=yes"],
    )


@pytest.fixture(scope="session")
def podman_rootless():
    """Podman of an ordinary user, who runs these tests: see test_rootless.py."""
    folder = os.environ["TEST_ROOTLESS"]
    return Engine("podman_rootless", folder, [f"{folder}/bin/podman"])


class Apptainer(Engine):
    """Its containers are processes of this machine: those count whose workdirs are of these tests.

    Attributes:
        workdirs: Below which folder all workdirs are.
    """

    def __init__(self, workdirs, **keywords):
        super().__init__(**keywords)
        self.workdirs = workdirs

    def containers(self):
        def is_ours(word):
            return word.startswith(os.fsencode(f"{self.workdirs}/"))

        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
                if b"xqute-apptainer" in words and any(map(is_ours, words)):
                    found.append(path.parent.name)
            except (FileNotFoundError, ProcessLookupError):
                continue
        return found

    def remove_all(self):
        for pid in self.containers():
            with suppress(ProcessLookupError):
                os.killpg(int(pid), signal.SIGKILL)


@pytest.fixture(scope="session")
def apptainer(images, tmp_path_factory):
    return Apptainer(
        str(tmp_path_factory.getbasetemp()),
        name="apptainer",
        folder=images,
        program=["apptainer"],
        image=f"{images}/bash",
    )


@pytest.fixture
def unclosed_sockets(caplog):
    """The SDK does not close a socket that it could not connect: Python says so here, not later.

    Until then it is held by the error, and that by what was logged of it.
    """
    yield
    for phase in ("setup", "call"):
        caplog.get_records(phase).clear()
    gc.collect()


@pytest.fixture
def engine(request):
    """The engine of the class of a test, with nothing left in it afterwards."""
    engine = request.getfixturevalue(request.cls.engine_name)
    yield engine
    is_allowed = request.node.name in getattr(request.cls, "leaves_something", ())
    deadline_s = time.monotonic() + 10
    while (left := engine.containers()) and time.monotonic() < deadline_s:
        if is_allowed:
            engine.remove_all()
        time.sleep(0.05)  # what was killed takes a moment to be gone
    engine.remove_all()
    assert left == []
