"""`choreo topics plan | apply`: the topics an app needs, against those there are."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from choreo.cli.console import FAILED, AsJson, Broker, Target, load_app, out, print_json, reported, run_async
from choreo.opening import open_transport
from choreo.ports import TopicSpec

topics = typer.Typer(
    help="Compare an app's topics with the broker's, and create what is missing.", no_args_is_help=True
)

Partitions = Annotated[int, typer.Option(min=1, help="Of topics that are missing.")]
Replication = Annotated[int, typer.Option(min=1, help="Of topics that are missing.")]


@topics.command()
@reported
def plan(
    target: Target,
    broker: Broker,
    partitions: Partitions = 4,
    replication: Replication = 1,
    as_json: AsJson = False,
) -> None:
    """Say which topics are missing or have fewer partitions; exit 1 if any."""
    wanted = load_app(target).topic_specs(partitions, replication)
    _print(compare(wanted, run_async(_existing(broker))), as_json)


@topics.command()
@reported
def apply(
    target: Target,
    broker: Broker,
    partitions: Partitions = 4,
    replication: Replication = 1,
    as_json: AsJson = False,
) -> None:
    """Create the missing topics; those that exist are left as they are. Exit 1 if one has fewer partitions."""
    wanted = load_app(target).topic_specs(partitions, replication)
    before = run_async(_apply(broker, wanted))
    found = compare(wanted, before)
    for row in found:
        if row["state"] == "missing":
            row["state"] = "created"
    _print(found, as_json)


def compare(wanted: Sequence[TopicSpec], existing: Mapping[str, TopicSpec]) -> list[dict[str, Any]]:
    """A row for each wanted topic; `state`: ok, missing, fewer_partitions."""
    rows = []
    for spec in wanted:
        there = existing.get(spec.name)
        has = 0 if there is None else there.partitions
        state = "missing" if there is None else "ok" if has >= spec.partitions else "fewer_partitions"
        rows.append({"topic": spec.name, "partitions": has, "wanted": spec.partitions, "state": state})
    return rows


async def _existing(broker: str) -> Mapping[str, TopicSpec]:
    transport = open_transport(broker)
    await transport.open()
    try:
        return await transport.topics()
    finally:
        await transport.close()


async def _apply(broker: str, wanted: Sequence[TopicSpec]) -> Mapping[str, TopicSpec]:
    """Create what is missing; returns what there was before."""
    transport = open_transport(broker)
    await transport.open()
    try:
        before = await transport.topics()
        await transport.create_topics([spec for spec in wanted if spec.name not in before])
        return before
    finally:
        await transport.close()


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    ok = all(row["state"] in ("ok", "created") for row in rows)
    if as_json:
        print_json({"ok": ok, "topics": rows})
    else:
        table = Table("topic", "partitions", "wanted", "state")
        for row in rows:
            colour = "green" if row["state"] in ("ok", "created") else "red"
            state = str(row["state"]).replace("_", " ")
            table.add_row(row["topic"], str(row["partitions"]), str(row["wanted"]), f"[{colour}]{state}[/]")
        out().print(table)
    if not ok:
        raise typer.Exit(FAILED)
