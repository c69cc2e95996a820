"""Checks the news fragments: each is a distribution's, named as README.md says, and renders."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

CHANGES = Path(__file__).resolve().parent
PACKAGES = CHANGES.parent / "packages"


def find_problems() -> list[str]:
    """All complaints, each naming its file; nothing is changed."""
    members = {path.parent.name: path for path in sorted(PACKAGES.glob("*/pyproject.toml"))}
    problems = [
        f"{folder}: no distribution of that name in packages/"
        for folder in CHANGES.iterdir()
        if folder.is_dir() and folder.name not in members
    ]
    for name, pyproject in members.items():
        settings = tomllib.loads(pyproject.read_text("utf-8"))
        types = "|".join(kind["directory"] for kind in settings["tool"]["towncrier"]["type"])
        well_named = re.compile(rf"(\d+|\+[\w-]+)\.({types})(\.\d+)?\.md")
        folder = CHANGES / name
        for fragment in sorted(folder.iterdir()) if folder.is_dir() else ():
            if not well_named.fullmatch(fragment.name):
                problems.append(f"{fragment}: the name is not <issue>.<{types}>.md")
            elif not fragment.read_text("utf-8").strip():
                problems.append(f"{fragment}: empty")
        render = ["towncrier", "build", "--draft", "--version", settings["project"]["version"]]
        render += ["--config", str(pyproject), "--dir", str(pyproject.parent)]
        rendered = subprocess.run(render, capture_output=True, text=True, check=False)
        if rendered.returncode != 0:
            problems.append(f"{pyproject}: {rendered.stderr.strip()}")
    return problems


if __name__ == "__main__":
    complaints = find_problems()
    print("\n".join(complaints) or "news fragments: in order")
    sys.exit(bool(complaints))
