"""Each distribution, built as for publishing and installed from the package index, does its work.

A backend adds its row to DISTRIBUTIONS. Core, which it depends on, is that of this checkout.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
SDKS = ("azure", "boto3", "botocore", "docker", "google", "grpc", "paramiko")
LAZY = ("cloudpathlib", "rich", "click")
"""What core depends on but loads at its first use alone."""


class Row(NamedTuple):
    distribution: str
    import_name: str
    beneath: str = "xqute"
    """What importing it stands on: its import time is counted from there."""
    schedulers: frozenset[str] = frozenset()
    """Entry points of the group `xqute.schedulers`."""
    sdks: frozenset[str] = frozenset()
    """Which of SDKS it may bring in. Importing it loads none, not even these."""
    scripts: frozenset[str] = frozenset()
    """Commands it installs; each answers --version."""


DISTRIBUTIONS = [
    Row("xqute-core", "xqute", "simplug", frozenset({"local"}), scripts=frozenset({"xqute"})),
    Row("xqute-sge", "xqute_sge", schedulers=frozenset({"sge"})),
    Row("xqute-slurm", "xqute_slurm", schedulers=frozenset({"slurm"})),
    Row(
        "xqute-container",
        "xqute_container",
        schedulers=frozenset({"container"}),
        sdks=frozenset({"docker"}),
    ),
    Row("xqute-ssh", "xqute_ssh", schedulers=frozenset({"ssh"}), sdks=frozenset({"paramiko"})),
    Row(
        "xqute-gbatch",
        "xqute_gbatch",
        schedulers=frozenset({"gbatch"}),
        sdks=frozenset({"google", "grpc"}),
    ),
]


def run(*argv, cwd):
    done = subprocess.run(
        [str(part) for part in argv],
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


class Installed(NamedTuple):
    row: Row
    source: Path
    sdist: Path
    wheel: Path
    bin: Path
    cwd: Path

    def python(self, code):
        return run(self.bin / "python", "-I", "-W", "error", "-c", code, cwd=self.cwd)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with every distribution's sdist, and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    for row in DISTRIBUTIONS:
        source = ROOT / "packages" / row.distribution
        build = ["uv", "build", "--quiet", "--python", sys.executable, "--out-dir", folder, source]
        run(*build, cwd=folder)
    return folder


@pytest.fixture(scope="module", params=DISTRIBUTIONS, ids=lambda row: row.distribution)
def installed(request, built, tmp_path_factory):
    row = request.param
    stem = row.distribution.replace("-", "_")
    (wheel,) = built.glob(f"{stem}-*.whl")
    (sdist,) = built.glob(f"{stem}-*.tar.gz")
    folder = tmp_path_factory.mktemp(stem)
    venv.create(folder / "venv", with_pip=True)
    cwd = folder / "cwd"
    cwd.mkdir()
    binaries = folder / "venv" / "bin"
    cores = [] if row.distribution == "xqute-core" else list(built.glob("xqute_core-*.whl"))
    run(binaries / "python", "-m", "pip", "install", "--quiet", *cores, wheel, cwd=cwd)
    return Installed(row, ROOT / "packages" / row.distribution, sdist, wheel, binaries, cwd)


def test_every_package_has_its_row():
    members = {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert {row.distribution for row in DISTRIBUTIONS} == members


def test_the_wheel_made_from_the_sdist_has_every_source_file(installed):
    sources = installed.source / "src"
    wanted = {
        str(path.relative_to(sources))
        for path in sources.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with zipfile.ZipFile(installed.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == wanted
    assert f"{installed.row.import_name}/py.typed" in names


def test_wheel_and_sdist_carry_licence_readme_and_changelog(installed):
    with zipfile.ZipFile(installed.wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
    assert "License-Expression: MIT" in text
    assert (installed.source / "README.md").read_text("utf-8") in text
    with tarfile.open(installed.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} <= names


def test_dependencies_agree(installed):
    run(installed.bin / "python", "-m", "pip", "check", cwd=installed.cwd)


def test_no_sdk_comes_along(installed):
    found = installed.python(
        "from importlib.metadata import packages_distributions as p; print(*p())"
    ).split()
    assert set(found) & set(SDKS) <= installed.row.sdks


def test_import_loads_no_sdk_and_nothing_that_can_wait(installed):
    name = installed.row.import_name
    loaded = installed.python(
        f"import sys, {name}; print(*{{m.partition('.')[0] for m in sys.modules}})"
    ).split()
    assert name in loaded
    assert set(loaded) & {*SDKS, *LAZY} == set()


def test_import_costs_at_most_30_ms_of_cpu_beyond_what_it_stands_on(installed):
    code = (
        "import asyncio, time\n"
        f"import {installed.row.beneath}\n"
        "before = time.process_time()\n"
        f"import {installed.row.import_name}\n"
        "print(1000 * (time.process_time() - before))"
    )
    cost_ms = min(float(installed.python(code)) for _ in range(5))
    assert cost_ms <= 30


def test_version_is_the_distributions(installed):
    pyproject = tomllib.loads((installed.source / "pyproject.toml").read_text("utf-8"))
    version = pyproject["project"]["version"]
    name = installed.row.import_name
    assert installed.python(f"import {name}; print({name}.__version__)").strip() == version
    for script in installed.row.scripts:
        told = run(installed.bin / script, "--version", cwd=installed.cwd)
        assert re.search(rf"(^|\s){re.escape(version)}($|\s)", told)


def test_schedulers_are_registered_and_load(installed):
    told = installed.python(
        "from importlib.metadata import entry_points\n"
        "from xqute import Scheduler\n"
        "for point in entry_points(group='xqute.schedulers'):\n"
        "    assert issubclass(point.load(), Scheduler), point\n"
        f"    if point.dist.name == {installed.row.distribution!r}: print(point.name)"
    )
    assert set(told.split()) == installed.row.schedulers


def test_a_job_runs(installed):
    told = installed.python(
        "import xqute\n"
        "(job,) = xqute.run([['sh', '-c', 'echo it ran; exit 3']], workdir='w', num_retries=0)\n"
        "print(job.rc, job.outcome.name, job.stdout_file.read_text().strip())"
    )
    assert told.split() == ["3", "FAILED", "it", "ran"]
