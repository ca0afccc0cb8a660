"""Prose and tables of the page."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence


def prose(text: str) -> list[str]:
    """Lines of at most 118 characters, and an empty one behind them."""
    paragraphs = [" ".join(each.split()) for each in text.split("\n\n")]
    return [line for each in paragraphs for line in [*textwrap.wrap(each, 118, break_on_hyphens=False), ""]]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A row that is short gets empty cells."""
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        cells = [str(cell) for cell in row] + [""] * (len(heads) - len(row))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def ratios(row: dict[str, float], name: str = "ratio") -> tuple[str, str]:
    """The median, and the lowest and the highest of the rounds; empty where there is none."""
    if name not in row:
        return "", ""
    return f"{row[name]:.2f}", f"{row[name + '_min']:.2f}-{row[name + '_max']:.2f}"
