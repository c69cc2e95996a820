"""xqute on this machine, measured beside what it is compared with: `python benchmarks/local.py`.

Prints one table for each benchmark, with the targets. Exit code 0; 1 if a measurement failed, and
with --strict if a target was missed or not measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import FULL, QUICK, Bench
from measuring import probe_files_us
from reporting import Section, render_section, section_as_json
from sections import SECTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType


def main() -> int:
    """Run the benchmarks that the command line asks for and return the exit code."""
    options = _parse()
    sizes = QUICK if options.quick else FULL
    here = _machine()
    load = os.getloadavg()[0]
    print(f"{here['cores']} cores, {here['cpu']}, {here['system']}, Python {here['python']}")
    started = time.perf_counter()
    sections: list[Section] = []
    signal.signal(signal.SIGTERM, _interrupt)  # so that what was made is removed then, too
    with _folder(None) as scratch, _folder("/dev/shm") as memory:
        here["files_us"] = probe_files_us(scratch)
        print(f"load {load:.2f}; in {scratch.parent} a folder with a file costs", end=" ")
        print(f"{here['files_us']:.0f} us", flush=True)
        bench = Bench(sizes, scratch, memory, options.peers or scratch / "peers", _tell)
        for name in options.only or SECTIONS:
            section = SECTIONS[name](bench)
            _tell("")
            print("\n" + render_section(section), flush=True)
            sections.append(section)
    took_s = time.perf_counter() - started
    missed = [section.name for section in sections if section.missed]
    broken = [section.name for section in sections if section.broken]
    print(f"\n{took_s:.0f} s; load at the end {os.getloadavg()[0]:.2f}")
    print(
        f"targets missed or not measured in: {', '.join(missed)}" if missed else "all targets kept"
    )
    if options.json:
        found = {
            "machine": here,
            "sizes": asdict(sizes),
            "load_before": load,
            "seconds": took_s,
            "sections": [section_as_json(section) for section in sections],
        }
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 1 if broken or (options.strict and missed) else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="small sizes: to see that it works")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--only",
        action="append",
        choices=list(SECTIONS),
        help="only this benchmark; may be given several times",
    )
    parser.add_argument("--strict", action="store_true", help="a missed target is exit code 1")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FOLDER",
        help="keep the environments of the Python peers there, for the next time",
    )
    options = parser.parse_args()
    if options.peers:
        options.peers = options.peers.resolve()
    return options


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        cpu = next(iter(models), cpu)
    except FileNotFoundError:  # no Linux
        pass
    return {
        "cores": os.cpu_count(),
        "cpu": cpu,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _folder(root: str | None) -> Iterator[Path]:
    if root is not None and not os.access(root, os.W_OK):
        root = None
    with tempfile.TemporaryDirectory(prefix="xqute-benchmark-", dir=root) as folder:
        yield Path(folder).resolve()


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
