"""Rootless Podman: tests of this folder, run once more by an ordinary user."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SERVICES = HERE.parent / "services" / "container"

pytestmark = pytest.mark.needs("podman", "newuidmap", "setpriv", "useradd", root=True)


@pytest.fixture(scope="module")
def rootless(short_folder, images):
    """Run a program as a user made for this, with a Podman of that user's own; give its output."""
    user = f"xq{os.getpid()}"
    folder = f"{short_folder}/rootless"
    # This Python and these tests may lie where others have no access: reading is allowed.
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
    reading = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]

    def run(*argv, timeout_s=300):
        done = subprocess.run(
            [*become, *reading, *map(str, argv)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=HERE,
            env={
                "PATH": os.environ["PATH"],
                "HOME": f"{folder}/home",
                "PYTHONDONTWRITEBYTECODE": "1",
                "TEST_ROOTLESS": folder,
                "TEST_ENGINES": os.environ.get("TEST_ENGINES", ""),
            },
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    subprocess.run(["useradd", "--no-create-home", "--home-dir", folder, user], check=True)
    try:
        os.makedirs(folder)
        os.chmod(folder, 0o755)
        subprocess.run(["chown", f"{user}:", folder], check=True)
        run(SERVICES / "podman-home", folder)
        for image in ("bash", "busybox"):
            run(f"{folder}/bin/podman", "import", f"{images}/{image}.tar", f"localhost/{image}:1")
        yield run
    finally:
        if os.path.exists(f"{folder}/bin/podman"):
            run(SERVICES / "stop-podman", folder)
        subprocess.run(["userdel", user], check=True)


@pytest.mark.timeout(1200)
def test_the_tests_that_touch_the_backend_pass_without_root(rootless):
    said = rootless(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "rootless"),
        *("--deselect", HERE / "test_rootless.py", HERE),
        timeout_s=1180,
    )
    found = re.search(r"(\d+) passed", said.splitlines()[-1])
    assert found, said
    assert int(found[1]) >= 7, said
    print(said)  # noqa: T201  # what was tried
