"""Figures with their targets, and how they are printed and written as JSON."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from measuring import Samples

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Verdict(StrEnum):
    """How a figure compares with its target."""

    PASS = "PASS"
    MISS = "MISS"
    NONE = ""
    UNKNOWN = "NOT MEASURED"


@dataclass(frozen=True, slots=True)
class Target:
    """A bound that a figure is to keep."""

    sign: str
    """`>=` or `<=`."""
    limit: float

    def verdict(self, value: float) -> Verdict:
        """Whether `value`, in the figure's unit, keeps the bound."""
        holds: Callable[[float, float], bool] = {">=": operator.ge, "<=": operator.le}[self.sign]
        return Verdict.PASS if holds(value, self.limit) else Verdict.MISS

    def __str__(self) -> str:
        return f"{self.sign} {self.limit:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: its value, and the extremes over all rounds."""

    name: str
    unit: str
    value: float
    low: float
    high: float
    target: Target | None = None

    @classmethod
    def of_median(cls, name: str, unit: str, values: list[float]) -> Figure:
        """The median of `values`, which has one value for each round."""
        samples = Samples(tuple(values))
        return cls(name, unit, samples.median, samples.low, samples.high)

    @classmethod
    def of_quantile(
        cls, name: str, unit: str, fraction: float, rounds: list[list[float]]
    ) -> Figure:
        """A quantile of all values together; the extremes are those of each round's quantile."""
        each = [Samples(tuple(values)).quantile(fraction) for values in rounds]
        together = Samples(tuple(value for values in rounds for value in values))
        return cls(name, unit, together.quantile(fraction), min(each), max(each))

    @property
    def verdict(self) -> Verdict:
        """Whether it keeps its target; NONE if it has none."""
        return self.target.verdict(self.value) if self.target else Verdict.NONE

    @property
    def noise(self) -> float:
        """The distance of the extremes, as a part of the value."""
        return (self.high - self.low) / self.value if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Absent:
    """A quantity that was to be measured and was not."""

    name: str
    why: str
    broken: bool = False
    """It should have worked: an error, and not merely something that is not installed."""
    target: Target | None = None

    @property
    def verdict(self) -> Verdict:
        """UNKNOWN where there is a target."""
        return Verdict.UNKNOWN if self.target else Verdict.NONE


@dataclass(slots=True)
class Section:
    """What one benchmark found."""

    name: str
    title: str
    rows: list[Figure | Absent] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def aim(self, targets: Mapping[str, Target]) -> None:
        """Give each row the target of its name.

        Raises:
            KeyError: There is a target for a figure that is not here, so nobody would miss it.
        """
        unused = targets.keys() - {row.name for row in self.rows}
        if unused:
            raise KeyError(*sorted(unused))
        self.rows = [replace(row, target=targets.get(row.name)) for row in self.rows]

    @property
    def missed(self) -> bool:
        """Whether any target was missed or not measured."""
        return any(row.verdict in (Verdict.MISS, Verdict.UNKNOWN) for row in self.rows)

    @property
    def broken(self) -> bool:
        """Whether any measurement ended in an error."""
        return any(isinstance(row, Absent) and row.broken for row in self.rows)


_HEADINGS = ("", "value", "min", "max", "noise", "unit", "target", "")


def render_section(section: Section) -> str:
    """The section as text, a table with one row for each figure."""
    table = [_HEADINGS]
    absent: dict[str, list[str]] = {}
    for row in section.rows:
        target = str(row.target) if row.target else ""
        if isinstance(row, Absent):
            table.append((row.name, "-", "", "", "", "", target, row.verdict))
            absent.setdefault(row.why, []).append(row.name)
        else:
            numbers = (_number(row.value), _number(row.low), _number(row.high))
            noise = f"{row.noise:.0%}"
            table.append((row.name, *numbers, noise, row.unit, target, row.verdict))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [section.title]
    for cells in table:
        name, *rest = (
            cell.rjust(width) if 1 <= column <= len(_HEADINGS) - 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        lines.append("  ".join(["   " + name, *rest]).rstrip())
    lines += [f"   {why} (so no {'; '.join(names)})" for why, names in absent.items()]
    lines += [f"   {remark}" for remark in section.remarks]
    return "\n".join(lines)


def _number(value: float) -> str:
    if abs(value) >= 1000:  # noqa: PLR2004  # four digits need no fraction
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"  # noqa: PLR2004


def section_as_json(section: Section) -> dict[str, Any]:
    """The section as JSON values; `value` is null where nothing was measured."""
    return {
        "name": section.name,
        "title": section.title,
        "remarks": section.remarks,
        "figures": [_row_as_json(row) for row in section.rows],
    }


def _row_as_json(row: Figure | Absent) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "name": row.name,
        "target": str(row.target) if row.target else None,
        "verdict": row.verdict.value or None,
    }
    if isinstance(row, Absent):
        return {**shared, "value": None, "why": row.why}
    return {
        **shared,
        "unit": row.unit,
        "value": row.value,
        "min": row.low,
        "max": row.high,
    }
