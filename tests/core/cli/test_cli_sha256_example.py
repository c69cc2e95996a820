"""examples/sha256_doc.py can fail: a wrong line among many, a job too few, a wrong exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "sha256_doc.py"
N_FILES = 40


@pytest.fixture
def compare(tmp_path, cli):
    """Run the example over a few files, with a given command in the place of `xqute`."""
    files = tmp_path / "files"
    files.mkdir()
    for number in range(N_FILES):
        (files / f"{number} it's \\ a \udcfffile").write_text(f"{number}\n")

    def compare(command=None, least=N_FILES):
        path = os.environ["PATH"]
        if command is not None:
            (tmp_path / "bin").mkdir()
            (tmp_path / "bin" / "xqute").write_text(f"#!/bin/bash\n{command}\n")
            (tmp_path / "bin" / "xqute").chmod(0o755)
            path = f"{tmp_path / 'bin'}{os.pathsep}{path}"
        return subprocess.run(
            [sys.executable, "-W", "error", EXAMPLE, files, str(least)],
            env={**cli.env, "PATH": path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return compare


def real(filter_):
    """The real command, what it tells going through a filter."""
    return f'PATH=${{PATH#*:}} xqute "$@" | {filter_}'


def test_it_says_how_many_files_are_equal(compare):
    done = compare()
    assert (done.returncode, done.stdout) == (
        0,
        f"{N_FILES} files: every line equal to the plain loop's\n",
    ), done.stderr


@pytest.mark.parametrize(
    ("filter_", "seen"),
    [
        ('sed \'7s/"rc": 0/"rc": 1/\'', "xqute (1, "),
        ("sed 7d", "xqute None"),
        ("sed '7{h;d};8{p;x}'", "xqute (0, "),
        ("{ cat; printf x >>.xqute/runs/latest/6/job.stdout; }", "\\nx"),
    ],
    ids=["exit code", "missing", "order", "content"],
)
def test_it_fails_on_a_difference(compare, filter_, seen):
    done = compare(real(filter_))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"of {N_FILES} files differ" in done.stderr
    assert seen in done.stderr


def test_too_few_files_are_no_proof(compare):
    done = compare(least=N_FILES + 1)
    assert done.returncode == 1
    assert f"{N_FILES} files, but {N_FILES + 1} are needed" in done.stderr
