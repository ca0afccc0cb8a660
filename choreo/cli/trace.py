"""`choreo trace`: flows as trees, from the log, the stores and Jaeger."""

import asyncio
import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape

from choreo.cli.capabilities import load_capability
from choreo.cli.console import (
    AsJson,
    Store,
    err,
    fail,
    out,
    print_json,
    reported,
    require_log,
    run_async,
    seconds,
)
from choreo.cli.tracing import SLACK_MS, Found, Where, look
from choreo.errors import ConfigurationError
from choreo.flow import page
from choreo.flow.drawing import tree

FOLLOW_S = 1.0
LINE_CHARS_MAX = 1_000


@reported
def trace(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID] [MODULE:APP | FILE.json]...",
            help="A correlation id, event id or trace id; then where the flow is declared.",
        ),
    ] = None,
    key: Annotated[str | None, typer.Option(metavar="KEY", help="A record key in place of ID.")] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="CHOREO_BROKER", help="embedded:PATH or kafka://host:port.")
    ] = None,
    store: Store = None,
    jaeger: Annotated[str | None, typer.Option(metavar="URL", help="A Jaeger, asked too.")] = None,
    topics: Annotated[str | None, typer.Option(help="Actual names with commas; all of an embedded log.")] = None,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 30m, 12h, 7d, 2w.")] = "7d",
    follow: Annotated[bool, typer.Option(help="Draw it again every second until the flow ends, or Ctrl-C.")] = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, for an incident.")] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a flow: its events, who handled them, dead letters, what it waits for. Exit 1 if nothing is found."""
    name, targets = _named(list(names or ()), key)
    if follow and as_json:
        raise ConfigurationError("--follow draws for people; ask again and again for --json")
    if broker is None and jaeger is None:
        raise ConfigurationError("say where to look: --broker URL (or CHOREO_BROKER), or --jaeger URL")
    if broker is not None:
        require_log(broker)
    wanted = tuple(each for each in (topics or "").split(",") if each)
    prefix = os.environ.get("CHOREO_TOPIC_PREFIX", "")
    where = Where(broker, store, jaeger, load_capability(targets) if targets else None, wanted, prefix)
    since_ms = max(0, int((time.time() - seconds(since)) * 1000))
    if follow:
        found = _followed(where, name, html, by_key=key is not None, since_ms=since_ms)
    else:
        found = run_async(look(where, name, by_key=key is not None, since_ms=since_ms))
    if html is not None and found.timelines:
        _write(html, found)
        err().print(f"wrote {html}", highlight=False, markup=False)
    if as_json:
        print_json(found.as_dict())
    elif not follow and found.timelines:
        _console().print(_drawn(found))
    if not found.timelines:
        places = " and ".join(each for each in (broker, jaeger) if each)
        fail(f"{places}: no event of {name} in the last {since}; check the id, or try a longer --since")


def _named(names: list[str], key: str | None) -> tuple[str, list[str]]:
    """What to look for, and where the declarations are."""
    if key is not None:
        return key, names
    if not names:
        raise ConfigurationError("name a correlation id, an event id or a trace id; or give --key KEY")
    return names[0], names[1:]


def _followed(where: Where, name: str, html: Path | None, *, by_key: bool, since_ms: int) -> Found:
    """Draw, and keep the page current, until every flow that was found has ended, or until interrupted."""
    found = Found()

    async def draw(live: Live) -> None:
        nonlocal found
        since = since_ms
        while True:
            found = await look(where, name, by_key=by_key, since_ms=since)
            if found.timelines:
                since = max(since, min(each.begun_ms for each in found.timelines) - SLACK_MS)
                live.update(_drawn(found), refresh=True)
                if html is not None:
                    _write(html, found)
                if all(each.progress is not None and each.progress.ended for each in found.timelines):
                    return
            await asyncio.sleep(FOLLOW_S)

    console = _console()
    with Live(console=console, auto_refresh=False) as live:
        try:
            asyncio.run(draw(live))
        except KeyboardInterrupt:
            pass  # the reader has seen enough
    if not console.is_terminal:
        console.print()  # there Live leaves its last line without an end
    return found


def _console() -> Console:
    """A tree cuts lines that do not wrap. So they do in a terminal, and in a file there is room for each."""
    console = out()
    console.soft_wrap = False
    return console if console.is_terminal else Console(width=LINE_CHARS_MAX)


def _drawn(found: Found) -> Group:
    return Group(*(tree(each) for each in found.timelines), *(f"[dim]{escape(line)}[/]" for line in _read(found)))


def _read(found: Found) -> list[str]:
    """What was read, in words."""
    said = []
    if log := found.read.get("log"):
        said.append(f"log: {', '.join(log['topics'])} since {log['since']}, {log['records']:,} records")
    if stores := found.read.get("stores"):
        said.append(f"{', '.join(dict.fromkeys(each['kind'] for each in stores))}: {found.read['keys']} keys")
    if jaeger := found.read.get("jaeger"):
        said.append(f"Jaeger: {jaeger['spans']:,} spans")
    more = [f"{found.more} older flows are left out: narrow it with --since"] if found.more else []
    return [f"read {'; '.join(said)}", *found.remarks, *more]


def _write(html: Path, found: Found) -> None:
    text = page.render(found.timelines, now_ms=int(time.time() * 1000), read=_read(found))
    try:
        html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{html} cannot be written: {error.strerror}") from None
