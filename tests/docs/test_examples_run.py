"""Runs what the documentation shows.

Every ```python and ```bash block of README.md, packages/*/README.md and docs/ is a program of its
own: run in an empty folder it must exit 0. So must every script of examples/. A word after the
language changes that:

    ```bash setup      in a copy of the repository, with a fresh virtual environment
    ```python no-run   not at all (it needs a cluster, or is a part of something)
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("packages/*/README.md"), *ROOT.glob("docs/**/*.md")])
SCRIPTS = sorted(path for path in ROOT.glob("examples/**/*") if path.suffix in {".py", ".sh"})
FENCE = re.compile(r"^```(python|bash)([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INTERPRETERS = {"python": [sys.executable, "-W", "error"], "bash": ["bash", "-euo", "pipefail"]}
DEADLINE_S = 300


class Block(NamedTuple):
    language: str
    flags: frozenset[str]
    code: str
    where: str


def parse_blocks(page: str, text: str) -> list[Block]:
    """The python and bash blocks of a Markdown text; `where` is page:line of the fence."""
    return [
        Block(
            found[1],
            frozenset(found[2].split()),
            found[3],
            f"{page}:{text.count(chr(10), 0, found.start()) + 1}",
        )
        for found in FENCE.finditer(text)
    ]


BLOCKS = [
    block
    for page in PAGES
    for block in parse_blocks(str(page.relative_to(ROOT)), page.read_text("utf-8"))
    if "no-run" not in block.flags
]


def run_program(argv, cwd, environment=None):
    done = subprocess.run(
        argv,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    if done.returncode != 0:
        pytest.fail(f"exit code {done.returncode}\n{done.stdout}", pytrace=False)


def make_newcomer(folder):
    """A copy of the repository, and the environment of a shell with a fresh venv active."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    checkout = folder / "checkout"
    for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
        if (ROOT / name).is_file():  # listed, but deleted and not yet committed
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, checkout / name)
    venv.create(folder / "venv", with_pip=True)
    path = f"{folder / 'venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return checkout, {**os.environ, "PATH": path, "VIRTUAL_ENV": str(folder / "venv")}


@pytest.mark.timeout(DEADLINE_S + 60)
@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_a_block_of_the_documentation_runs(block, tmp_path):
    program = tmp_path / f"block.{block.language}"
    program.write_text(block.code, "utf-8")
    cwd, environment = tmp_path / "cwd", None
    if "setup" in block.flags:
        cwd, environment = make_newcomer(tmp_path)
    else:
        cwd.mkdir()
    run_program([*INTERPRETERS[block.language], str(program)], cwd, environment)


@pytest.mark.timeout(DEADLINE_S + 60)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_example_runs(script, tmp_path):
    language = "python" if script.suffix == ".py" else "bash"
    run_program([*INTERPRETERS[language], str(script)], tmp_path)


def test_no_block_has_a_flag_that_nobody_reads():
    assert {flag for block in BLOCKS for flag in block.flags} <= {"setup"}


def test_blocks_are_found_with_language_flags_and_line():
    text = "# T\n\n```bash setup\necho 1\n```\n\n```python\nprint(1)\n```\n\n```text\nno\n```\n"
    assert parse_blocks("p.md", text) == [
        Block("bash", frozenset({"setup"}), "echo 1\n", "p.md:3"),
        Block("python", frozenset(), "print(1)\n", "p.md:7"),
    ]


def test_a_block_that_fails_is_reported_with_its_output(tmp_path):
    with pytest.raises(pytest.fail.Exception, match=r"exit code 1\nseen\n"):
        run_program([*INTERPRETERS["bash"], "-c", "echo seen; false | true"], tmp_path)


def test_the_readme_shows_something():
    shown = {block.language for block in BLOCKS if block.where.startswith("README.md")}
    assert shown == {"bash", "python"}
