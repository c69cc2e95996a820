"""What the benchmarks of clusters share: counted calls, pairs with a bare array."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from measuring import probe_files_us
from reporting import Figure

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path


class Calls:
    """Counts calls of a cluster's programs: each is hidden by a shim on PATH that notes its name.

    Args:
        folder: Where the shims go, and what they note.
        programs: The names of the programs.
    """

    def __init__(self, folder: Path, programs: Iterable[str]) -> None:
        self._log = folder / "calls"
        shims = folder / "shims"
        shims.mkdir()
        for name in programs:
            real = shutil.which(name)
            shim = shims / name
            shim.write_text(f'#!/bin/sh\necho {name} >>"{self._log}"\nexec {real} "$@"\n')
            shim.chmod(0o755)
        os.environ["PATH"] = f"{shims}{os.pathsep}{os.environ['PATH']}"

    @contextmanager
    def counted(self) -> Iterator[Counter[str]]:
        """Give a counter that has, after the block, how often each program was called in it."""
        counter: Counter[str] = Counter()
        self._log.write_text("")
        yield counter
        counter.update(self._log.read_text().split())


@dataclass(frozen=True, slots=True)
class Pair:
    """Seconds of the same jobs as one bare array, and through xqute."""

    bare_s: float
    xqute_s: float

    @property
    def over_s(self) -> float:
        """By how much xqute took longer than 1.05 times the array."""
        return self.xqute_s - 1.05 * self.bare_s


def time_pairs(
    folder: Path,
    rounds: int,
    run_bare: Callable[[int], float],
    run_xqute: Callable[[int], float],
) -> list[Pair]:
    """Time both in each round, and print them; each is first in every other round.

    Args:
        folder: The runs' folder, whose cost of a file is told.
        rounds: How many.
        run_bare: Runs the array; gets the number of the round, gives seconds.
        run_xqute: The same with xqute.
    """
    pairs = []
    for number in range(rounds):
        if number % 2 == 0:
            bare_s = run_bare(number)
            xqute_s = run_xqute(number)
        else:
            xqute_s = run_xqute(number)
            bare_s = run_bare(number)
        pairs.append(Pair(bare_s, xqute_s))
        print(
            f"  round {number}: bare {bare_s:.1f} s, xqute {xqute_s:.1f} s;"
            f" a folder with a file costs {probe_files_us(folder):.0f} us",
            flush=True,
        )
    return pairs


def compare_pairs(pairs: list[Pair]) -> list[Figure]:
    """Give both, and by how much xqute took longer than 1.05 times the array."""
    return [
        Figure.of_median("bare array", "s", [pair.bare_s for pair in pairs]),
        Figure.of_median("xqute, all at once", "s", [pair.xqute_s for pair in pairs]),
        Figure.of_median("xqute - 1.05 x bare", "s", [pair.over_s for pair in pairs]),
    ]
