"""The scripts that start engines for these tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "services" / "container"


@pytest.mark.needs("shellcheck")
def test_the_scripts_pass_shellcheck():
    done = subprocess.run(
        ["shellcheck", *SCRIPTS.iterdir()], stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
