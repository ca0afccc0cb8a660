"""`choreo trace`: one flow as a tree, from the log or from Jaeger."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.tree import Tree

from choreo.app import App
from choreo.cli.console import (
    AsJson,
    Store,
    embedded_path,
    fail,
    load_app,
    out,
    print_json,
    reported,
    require_log,
    run_async,
    seconds,
)
from choreo.errors import ConfigurationError
from choreo.flow import jaeger as jaeger_api
from choreo.flow.timeline import Timeline, build
from choreo.opening import open_transport
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore


@reported
def trace(
    correlation_id: Annotated[str, typer.Argument(metavar="CORRELATION_ID", help="As `choreo publish` printed it.")],
    target: Annotated[
        str | None, typer.Argument(metavar="[MODULE:APP]", help="Whose topics; or give --topics.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="CHOREO_BROKER", help="embedded:PATH or kafka://host:port.")
    ] = None,
    store: Store = None,
    jaeger: Annotated[str | None, typer.Option(metavar="URL", help="Ask this Jaeger, not the log.")] = None,
    topics: Annotated[str | None, typer.Option(help="Actual names with commas; all of an embedded log.")] = None,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 30m, 12h, 7d, 2w.")] = "7d",
    as_json: AsJson = False,
) -> None:
    """Draw one flow: its events, who handled them, duplicates, dead letters. Exit 1 if there is nothing of it."""
    since_s = seconds(since)
    app = load_app(target) if target else None
    if jaeger is not None:
        spans = jaeger_api.find(jaeger, correlation_id, list(app.services) if app else (), since_s=since_s)
        found: Any = {"correlation_id": correlation_id, "spans": [span.as_dict() for span in spans]}
        _print(found, jaeger_api.tree(correlation_id, spans), as_json)
        if not spans:
            fail(f"{jaeger} has no span of {correlation_id} in the last {since}; is it exported there? try --since")
        return
    if broker is None:
        raise ConfigurationError("say where to look: --broker URL (or CHOREO_BROKER), or --jaeger URL")
    require_log(broker)
    names = [name for name in (topics or "").split(",") if name]
    timeline = run_async(from_log(broker, correlation_id, app, names, since_s, stores_of(broker, store, app)))
    _print(timeline.as_dict(), timeline.tree(), as_json)
    if not timeline.roots:
        fail(f"{broker} has no event of {correlation_id} in the last {since}; check the id, or try a longer --since")


async def from_log(
    broker: str, correlation_id: str, app: App | None, topics: Sequence[str], since_s: float, stores: Sequence[Path]
) -> Timeline:
    """Read a flow's timeline off a log, and who handled it off the stores' files."""
    transport = open_transport(broker)
    await transport.open()
    try:
        existing = await transport.topics()
        wanted = list(topics) or ([spec.name for spec in app.topic_specs()] if app else [])
        if not wanted:
            if embedded_path(broker) is None:
                raise ConfigurationError("give MODULE:APP or --topics: all topics of a Kafka are too many to read")
            wanted = list(existing)
        if unknown := [name for name in topics if name not in existing]:
            raise ConfigurationError(f"the broker has no topic {', '.join(unknown)}")
        since_ms = max(0, int((time.time() - since_s) * 1000))
        records = await transport.scan([name for name in wanted if name in existing], since_ms=since_ms)
    finally:
        await transport.close()
    history: list[dict[str, Any]] = []
    for path in stores:
        history += await _history(path, correlation_id)
    return await asyncio.to_thread(build, records, correlation_id, history)


def stores_of(broker: str, store: str | None, app: App | None) -> list[Path]:
    """Files that know who handled what; none that is not there."""
    path = embedded_path(broker)
    if path is not None:
        return [path]
    kind, _, name = (store or "").partition(":")
    names = {name.replace("{service}", each) for each in (app.services if app else ())} or {name}
    return sorted(Path(each) for each in names if kind == "sqlite" and Path(each).exists())


async def _history(path: Path, correlation_id: str) -> Sequence[dict[str, Any]]:
    store = SqliteStore(Database(str(path)), SystemClock(), with_log=False)
    await store.open()
    try:
        return await store.history(correlation_id)
    finally:
        await store.close()


def _print(found: Any, tree: Tree, as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif tree.children:
        out().print(tree)
