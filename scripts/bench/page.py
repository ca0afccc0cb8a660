"""docs/performance.md: what was measured is written between two marks; what stands around it is by hand."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from scripts.bench import targets
from scripts.bench.markdown import prose, table
from scripts.bench.plots import draw
from scripts.bench.profiles import file_of
from scripts.bench.sections import ONLY_WHEN_NAMED, SECTIONS, section
from scripts.bench.stage import ROOT

BEGIN, END = "<!-- measured: `make bench` writes this -->", "<!-- measured: end -->"
PAGE = ROOT / "docs" / "performance.md"
PACKAGES = ("aiokafka", "confluent-kafka", "faststream", "pydantic", "opentelemetry-sdk", "psycopg", "redis")


def machine() -> str:
    """What it was measured on."""
    try:
        name = (
            Path("/proc/cpuinfo").read_text().partition("model name")[2].partition(":")[2].partition("\n")[0].strip()
        )
        memory = int(Path("/proc/meminfo").read_text().split()[1]) / 1e6
        shown = f"{name}, {memory:.0f} GB"
    except (OSError, IndexError, ValueError):
        shown = platform.processor() or platform.machine()
    return f"{os.cpu_count()} CPUs ({shown}), {platform.system()} {platform.release()}, clients and servers on it"


def versions() -> str:
    """Of Python and of the packages."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def commit() -> str:
    """What of choreo was measured; empty outside a repository."""
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


class Results:
    """What each section found, when and on what, kept as JSON beside the figures."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "results.json"
        self.kept: dict[str, Any] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def add(self, name: str, found: Any, about: dict[str, Any]) -> None:
        """Keep it, in place of what was there; lists of functions go to files of their own."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if name == "profiles":
            (self.folder / "profiles").mkdir(exist_ok=True)
            for row, each in found.items():
                (self.folder / "profiles" / file_of(row)).write_text(each.pop("text") + "\n")
        self.kept[name] = {**about, "found": found}
        self._file.write_text(json.dumps(self.kept, indent=1) + "\n")

    def found(self) -> dict[str, Any]:
        """By section."""
        return {name: self.kept[name]["found"] for name in SECTIONS if name in self.kept}


def write(results: Results, page: Path) -> None:
    """The figures, and the page: what is by hand is that of docs/performance.md."""
    figures = draw(results.found(), results.folder)
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(before + "\n".join([BEGIN, *body(results, figures), END]) + after)


def body(results: Results, figures: list[str]) -> list[str]:
    """Targets first, then a heading for each section."""
    if not results.kept:
        return []
    out = ["", "## Targets", ""]
    heads = ("work", "target", "measured", "of the rounds", "", "in the way")
    out += table(heads, targets.rows(results.found()))
    kept = {name: each for name, each in results.kept.items() if name in SECTIONS and name not in ONLY_WHEN_NAMED}
    out += ["", "## Measured on", "", *measured_on(kept)]
    for name in (each for each in SECTIONS if each in kept):
        out += ["", f"## {section(name).TITLE}", "", *section(name).lines(kept[name]["found"])]
        if name in figures:
            out += ["", f"![{section(name).TITLE}](performance/{name}.svg)"]
    return [*out, ""]


def measured_on(kept: dict[str, Any]) -> list[str]:
    """One paragraph for each run that the sections come from."""
    runs: dict[str, list[str]] = {}
    for name, each in kept.items():
        told = (
            f"{each['taken']}, choreo {each['commit']}, seed {each['seed']}, "
            f"{each['rounds']} rounds ({each['few']} of "
            f"what is not the main table): {each['machine']}. {each['versions']}."
        )
        runs.setdefault(told, []).append(name)
    lines = []
    for told, names in runs.items():
        loads = [load for name in names for load in kept[name]["load"]]
        lines += prose(
            f"{', '.join(names)}: {told} Load of the machine meanwhile {min(loads):.1f} to {max(loads):.1f}."
        )
    return lines[:-1]
