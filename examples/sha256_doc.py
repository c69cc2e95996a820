"""Checksums of thousands of real files by `xqute run` and by a plain loop, compared job for job.

    python sha256_doc.py [FOLDER [LEAST]]

FOLDER: where the files are; without it, the documentation of the system, and if that has too few
files, its other shared data and libraries. LEAST: how many there must be, 2000 if nothing is said.
Exits 1 if any job's output or exit code differs from what the loop got for that file.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence

FOLDERS = ["/usr/share/doc", "/usr/share", "/usr/lib"]
ENOUGH = 5000  # a machine may have a hundred times as many, to no purpose


def find_files(folders: Sequence[str], least: int) -> list[bytes]:
    """Paths of files below the first folder, and below the next ones while these are too few."""
    files: dict[bytes, None] = {}
    for folder in folders:
        found = subprocess.run(
            ["find", folder, "-type", "f"], stdout=subprocess.PIPE, check=False
        ).stdout.splitlines()
        files.update(dict.fromkeys(itertools.islice(found, ENOUGH - len(files))))
        if len(files) >= least:
            return list(files)
    sys.exit(f"{', '.join(folders)}: {len(files):,} files, but {least:,} are needed")


def loop(files: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """What a plain loop gives: for each file the exit code and what was printed."""
    for path in files:
        done = subprocess.run(["sha256sum", path], capture_output=True, check=False)
        yield done.returncode, done.stdout


def run_xqute(files: Sequence[bytes]) -> Iterator[tuple[int, bytes]]:
    """The same by `xqute run`, in the order of the files."""
    done = subprocess.run(
        ["xqute", "run", "--json", "--keep-order", "sha256sum {}"],
        input=b"".join(path + b"\n" for path in files),
        stdout=subprocess.PIPE,
        check=False,
    )
    for line in done.stdout.splitlines():
        record = json.loads(line)
        if record["type"] == "job":
            with open(record["stdout_file"], "rb") as output:
                yield record["rc"], output.read()


def main(folders: Sequence[str], least: int) -> None:
    """Compare, and say what came of it."""
    files = find_files(folders, least)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        differ = 0
        pairs = itertools.zip_longest(files, run_xqute(files), loop(files))
        for path, ours, theirs in pairs:
            if ours != theirs:
                differ += 1
                print(
                    f"{os.fsdecode(path or b'?')!r}: xqute {ours}, loop {theirs}", file=sys.stderr
                )
        os.chdir("/")
    if differ:
        sys.exit(f"{differ:,} of {len(files):,} files differ from the plain loop's")
    print(f"{len(files):,} files: every line equal to the plain loop's")


if __name__ == "__main__":
    main(sys.argv[1:2] or FOLDERS, int("".join(sys.argv[2:3]) or 2000))
