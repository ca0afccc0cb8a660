"""Figures of the page, as SVG. Without matplotlib there are none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.bench.stage import say

COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def draw(results: dict[str, Any], folder: Path) -> list[str]:
    """Write a file for each section that has a figure; returns their names."""
    if find_spec("matplotlib") is None:
        say("no figures: matplotlib is not installed; make bench installs it")
        return []
    drawn = []
    for name, figure in FIGURES.items():
        if results.get(name):
            figure(results[name], folder / f"{name}.svg")
            drawn.append(name)
    return drawn


@contextmanager
def _axes(path: Path, height: float = 3.6) -> Iterator[Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "choreo", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, height))
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    # matplotlib leaves spaces at the ends of lines.
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _cost(found: dict[str, Any], path: Path) -> None:
    rows = [(name, row) for name, row in found["rows"].items() if not name.startswith("faststream")][::-1]
    base = found["rows"]["aiokafka-txn"]["cpu_us"]
    with _axes(path, 0.9 + 0.24 * len(rows)) as axes:
        colours = [
            COLOURS[1] if "@" in name else COLOURS[2] if "txn" in name or "alo" in name else COLOURS[0]
            for name, _ in rows
        ]
        bars = axes.barh([name for name, _ in rows], [row["cpu_us"] / base for _, row in rows], color=colours)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel("CPU of an event, aiokafka-txn = 1 (medians)")


def _latency(found: dict[str, Any], path: Path) -> None:
    pairs = {name: row for name, row in found.items() if "points" in row}
    with _axes(path) as axes:
        for (name, row), colour in zip(pairs.items(), COLOURS, strict=False):
            shares = [100 * point["share"] for point in row["points"]]
            axes.plot(shares, [point["choreo"]["p99_ms"] for point in row["points"]], "o-", color=colour, label=name)
            bare = [point["bare"]["p99_ms"] for point in row["points"]]
            axes.plot(shares, bare, "o--", color=colour, alpha=0.5, label=f"its bare hop ({row['against']})")
        axes.set_yscale("log")
        axes.set_xlabel("% of capacity")
        axes.set_ylabel("p99, ms")
        axes.legend(fontsize=7, ncols=2)


def _lines(found: dict[str, Any], path: Path) -> None:
    """Cost against what the section varies."""
    rows, points = found["rows"], found["points"]
    unit = found["unit"]
    with _axes(path) as axes:
        for who, colour in zip(found["who"], COLOURS, strict=False):
            mine = [(point, row) for point in points for name, row in rows.items() if _is(name, who, point)]
            axes.plot([point for point, _ in mine], [row["cpu_us"] for _, row in mine], "o-", color=colour, label=who)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks(points, [f"{point:,}" for point in points])
        axes.minorticks_off()
        axes.set_xlabel(unit)
        axes.set_ylabel("CPU us an event")
        axes.legend(fontsize=7)


def _is(name: str, who: str, point: int) -> bool:
    row, _, at = name.partition(", ")
    return row == who and at.partition(" ")[0] == f"{point:,}"


def _keys(found: dict[str, Any], path: Path) -> None:
    stores = {name: row for name, row in found["stores"].items() if "points" in row}
    with _axes(path) as axes:
        for (name, row), colour in zip(stores.items(), COLOURS, strict=False):
            axes.plot(found["sizes"], [each["cpu_us"] for each in row["points"]], "o-", color=colour, label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("keys in the store")
        axes.set_ylabel("CPU us of claim and commit")
        axes.legend(fontsize=7)


FIGURES = {"cost": _cost, "latency": _latency, "partitions": _lines, "payload": _lines, "keys": _keys}
