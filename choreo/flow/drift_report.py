"""A comparison for people: what was looked at, how well it fits, and a table of findings."""

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group
from rich.table import Table
from rich.text import Text

from choreo.flow.drawing import printable
from choreo.flow.drift import Drift
from choreo.flow.drift_findings import PAGE, DriftFinding

_COLOURS = {"violation": "red", "improvement": "yellow", "information": "cyan", "inconclusive": "dim"}


def report(drift: Drift) -> Group:
    """For a Rich console. Names and types come from a log, where anybody may have written them."""
    parts = [Text("\n".join(_summary(drift)))]
    if not drift.findings:
        return Group(*parts, Text("nothing differs", style="green"))
    table = Table("finding", "count", "where, what and when (UTC)", show_lines=True)
    for each in drift.findings:
        name = Text(f"{each.level}\n", style=_COLOURS[each.level]) + Text(each.id, style="bold default")
        about = Text(printable(each.where), style="bold", overflow="fold")
        about.append(f"\n{printable(each.message)}", style="default not bold")
        if each.count:
            about.append(f"\n{_when(each)}{printable(_example(each))}", style="dim not bold")
        table.add_row(name, f"{each.count:,}", about)
    return Group(*parts, table, Text(f"see {PAGE}"))


def _summary(drift: Drift) -> Iterator[str]:
    seen = drift.seen
    yield f"{seen.basis}, {_moment(seen.from_ms)} to {_moment(seen.to_ms)} UTC"
    measures = (("fitness", drift.fitness, "edges seen"), ("precision", drift.precision, "declared edges"))
    said = [
        f"{name} {'unknown' if value is None else f'{value:.1%}'} (of the {what}, those "
        f"{'declared' if name == 'fitness' else 'seen'})"
        for name, value, what in measures
    ]
    yield ", ".join(said)
    yield ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in drift.sample.items())
    for flow in drift.flows:
        open_ = flow.started - flow.ended
        oldest = f", {open_:,} open, the oldest for {flow.oldest_open_s:,.0f} s" if open_ else ""
        yield f"flow {printable(flow.name)}: {flow.started:,} started, {flow.ended:,} ended{oldest}"
    if seen.doubt:
        yield f"What was not seen is no evidence: {printable(seen.doubt)}."
    yield from map(printable, drift.notes)


def _example(finding: DriftFinding) -> str:
    if finding.correlation_ids:
        return f"; choreo trace {finding.correlation_ids[0]}"
    return f"; trace {finding.trace_ids[0]}" if finding.trace_ids else ""


def _when(finding: DriftFinding) -> str:
    first, last = _moment(finding.first_seen_ms), _moment(finding.last_seen_ms)
    return first if first == last else f"{first} to {last}"


def _moment(at_ms: float | None) -> str:
    if at_ms is None:
        return "never"
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
