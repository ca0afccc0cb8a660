"""`choreo topics plan | apply | acl`: the topics an app needs, against those there are, and the rights on them."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from choreo.access import Access, lacking
from choreo.app import App
from choreo.cli.console import FAILED, AsJson, Broker, Store, Target, load_app, out, print_json, reported, run_async
from choreo.errors import ConfigurationError
from choreo.opening import open_transport
from choreo.ports import Guarded, TopicSpec

topics = typer.Typer(
    help="Compare an app's topics with the broker's, and create what is missing.", no_args_is_help=True
)

Partitions = Annotated[int, typer.Option(min=1, help="Of topics that are missing.")]
Replication = Annotated[int, typer.Option(min=1, help="Of topics that are missing.")]
Widen = Annotated[
    bool,
    typer.Option(
        help="Give topics with fewer partitions more. Keys move, and with them order and lanes: drain first."
    ),
]


@topics.command()
@reported
def plan(
    target: Target,
    broker: Broker,
    partitions: Partitions = 4,
    replication: Replication = 1,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Say which topics are missing or have fewer partitions; exit 1 if any. A changelog store has topics too."""
    _print(run_async(_looked_at(load_app(target), broker, partitions, replication, store)), as_json)


@topics.command()
@reported
def apply(
    target: Target,
    broker: Broker,
    partitions: Partitions = 4,
    replication: Replication = 1,
    store: Store = None,
    widen: Widen = False,
    as_json: AsJson = False,
) -> None:
    """Create the missing topics; those that exist are left as they are. Exit 1 if one has fewer partitions."""
    _print(run_async(_apply(load_app(target), broker, partitions, replication, store, widen)), as_json)


@topics.command()
@reported
def acl(
    target: Target,
    service: Annotated[list[str] | None, typer.Option(help="A service, again for more; all unless given.")] = None,
    principal: Annotated[
        str, typer.Option(help="Whom the brokers take a service for; {service} stands for its name.")
    ] = "User:{service}",
    broker: Annotated[
        str,
        typer.Option(envvar="CHOREO_BROKER", help="kafka://... or kafka+confluent://..., as the services have it."),
    ] = "kafka://localhost:9092",
    command_config: Annotated[
        str, typer.Option(help="The administrator's own settings, as Kafka's tools take them.")
    ] = "admin.properties",
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Print the rights each service needs and no others, as commands of Kafka's kafka-acls.sh. Changes nothing."""
    app = load_app(target)
    kind, _, servers = broker.partition(":")
    if not kind.startswith("kafka"):
        raise ConfigurationError(
            "there are rights on Kafka only: give --broker kafka://HOST:PORT, as services have it"
        )
    plans = app.plans(service or list(app.services))
    needed = {plan.service.name: plan.needs(app.topic, changelog=store == "changelog") for plan in plans}
    names = {name: principal.replace("{service}", name) for name in needed}
    if as_json:
        print_json({"services": [_rights(name, names[name], needed[name]) for name in needed]})
        return
    tool = ["kafka-acls.sh", "--bootstrap-server", servers.strip("/"), "--command-config", command_config, "--add"]
    for name, rights in needed.items():
        typer.echo(f"# {name}")
        for each in rights:
            words = [*tool, "--allow-principal", names[name]]
            words += [word for operation in each.operations for word in ("--operation", operation)]
            words += [f"--{each.resource}", each.name]
            words += ["--resource-pattern-type", "prefixed"] if each.prefixed else []
            typer.echo(f"{shlex.join(words)}  # {each.why}")


def _rights(service: str, principal: str, rights: Sequence[Access]) -> dict[str, Any]:
    return {
        "service": service,
        "principal": principal,
        "acls": [
            {
                "resource_type": each.resource,
                "name": each.name,
                "pattern_type": "prefixed" if each.prefixed else "literal",
                "operations": list(each.operations),
                "why": each.why,
            }
            for each in rights
        ],
    }


def compare(wanted: Sequence[TopicSpec], existing: Mapping[str, TopicSpec]) -> list[dict[str, Any]]:
    """A row for each wanted topic; `state`: ok, missing, fewer_partitions."""
    rows = []
    for spec in wanted:
        there = existing.get(spec.name)
        has = 0 if there is None else there.partitions
        state = "missing" if there is None else "ok" if has >= spec.partitions else "fewer_partitions"
        rows.append({"topic": spec.name, "partitions": has, "wanted": spec.partitions, "state": state})
    return rows


def wanted_topics(
    app: App, partitions: int, replication: int, store: str | None, existing: Mapping[str, TopicSpec], *, widen: bool
) -> list[TopicSpec]:
    """What the app needs; a changelog is as wide as its input topic is, or is about to be."""
    specs = app.topic_specs(partitions, replication)
    if store != "changelog":
        return specs
    from choreo.stores.changelog import changelog_specs

    planned = {spec.name: spec for spec in specs}
    for name, there in existing.items():
        spec = planned.get(name)
        if spec is not None and not (widen and there.partitions < spec.partitions):
            planned[name] = spec._replace(partitions=there.partitions, replication=there.replication)
    for name, service in app.services.items():
        inputs = {topic: planned[topic] for topic in (*app.input_topics(name), app.topic(service.replay_topic))}
        specs += changelog_specs(service.group, inputs, app.topic(""))
    return specs


async def _looked_at(
    app: App, broker: str, partitions: int, replication: int, store: str | None
) -> list[dict[str, Any]]:
    transport = open_transport(broker)
    await transport.open()
    try:
        existing = await transport.topics()
        wanted = wanted_topics(app, partitions, replication, store, existing, widen=False)
        missing = [Access("topic", spec.name, ("Describe",)) for spec in wanted if spec.name not in existing]
        if missing and isinstance(transport, Guarded) and (hidden := await transport.lacking(missing)):
            raise ConfigurationError(lacking(transport.principal, hidden))
    finally:
        await transport.close()
    return compare(wanted, existing)


async def _apply(
    app: App, broker: str, partitions: int, replication: int, store: str | None, widen: bool
) -> list[dict[str, Any]]:
    """Create what is missing, widen if told to; returns what was done to each."""
    transport = open_transport(broker)
    await transport.open()
    try:
        before = await transport.topics()
        wanted = wanted_topics(app, partitions, replication, store, before, widen=widen)
        rows = compare(wanted, before)
        await transport.create_topics([spec for spec in wanted if spec.name not in before])
        narrow = {row["topic"]: row["wanted"] for row in rows if row["state"] == "fewer_partitions"}
        if widen and narrow:
            await transport.widen(narrow)
    finally:
        await transport.close()
    for row in rows:
        if row["state"] == "missing":
            row["state"] = "created"
        elif widen and row["state"] == "fewer_partitions":
            row["state"] = "widened"
    return rows


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    good = ("ok", "created", "widened")
    ok = all(row["state"] in good for row in rows)
    if as_json:
        print_json({"ok": ok, "topics": rows})
    else:
        table = Table("topic", "partitions", "wanted", "state")
        for row in rows:
            colour = "green" if row["state"] in good else "red"
            state = str(row["state"]).replace("_", " ")
            table.add_row(row["topic"], str(row["partitions"]), str(row["wanted"]), f"[{colour}]{state}[/]")
        out().print(table)
    if not ok:
        raise typer.Exit(FAILED)
