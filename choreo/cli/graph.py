"""`choreo graph`: the declared flow as a picture, a page, a document or data."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from choreo.cli.capabilities import TARGETS_HELP, load_capability, print_findings
from choreo.cli.console import err, fail, reported, seconds
from choreo.cli.observing import observe_jaeger, observe_topics, stopped
from choreo.errors import ConfigurationError
from choreo.flow.asyncapi import asyncapi
from choreo.flow.catalogue import page
from choreo.flow.consistency import shape
from choreo.flow.findings import Finding
from choreo.flow.markdown import markdown
from choreo.flow.mermaid import mermaid
from choreo.flow.model import Capability, to_json
from choreo.flow.observed_page import observed_page
from choreo.flow.picture import declared_picture


class Format(StrEnum):
    """What to write."""

    MERMAID = "mermaid"
    JSON = "json"
    MARKDOWN = "markdown"
    ASYNCAPI = "asyncapi"
    HTML = "html"


@reported
def graph(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE:APP | FILE.json ...", help=TARGETS_HELP)
    ] = None,
    service: Annotated[list[str] | None, typer.Option(help="Of these services only; may be repeated.")] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="json is the capability file; asyncapi is of one service.")
    ] = Format.MERMAID,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, not standard output.")] = None,
    seen: Annotated[
        bool, typer.Option("--observed", help="Draw what ran, whoever wrote it: needs --jaeger, or --broker.")
    ] = False,
    jaeger: Annotated[str | None, typer.Option(metavar="URL", help="Observe its traces.")] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="CHOREO_BROKER", help="Observe headers of its records.")
    ] = None,
    topics: Annotated[str | None, typer.Option(help="Actual names with commas; all of an embedded log.")] = None,
    since: Annotated[str, typer.Option(help="How far to look back: 90s, 30m, 12h, 7d.")] = "24h",
) -> None:
    """Draw the flow that is declared, or with --observed the one that ran; say where it does not fit together."""
    if seen:
        if targets or service:
            raise ConfigurationError("--observed looks at what ran: leave out MODULE:APP and --service")
        _observed(format_, output, jaeger, broker, [name for name in (topics or "").split(",") if name], since)
        return
    if jaeger is not None or topics is not None:
        raise ConfigurationError("--jaeger and --topics are for --observed")
    whole = load_capability(targets or [])
    chosen = whole.of(*service) if service else whole
    # Of the whole: what a part does not read, another part may.
    findings = shape(whole)
    written(drawn(chosen, format_, findings, " ".join(targets or [])), output)
    print_findings(findings)


def _observed(
    format_: Format, output: Path | None, jaeger: str | None, broker: str | None, topics: list[str], since: str
) -> None:
    if jaeger is not None:
        flow, notes = observe_jaeger(jaeger, seconds(since))
    elif broker is not None:
        flow, notes = observe_topics(broker, topics, seconds(since))
    else:
        raise ConfigurationError("say where to look: --jaeger URL, or --broker URL with --topics a,b")
    if not flow.events:
        fail(f"nothing was seen in the last {since}; look back further with --since")
    stuck = stopped(flow)
    title = f"observed, {since}"
    match format_:
        case Format.MERMAID:
            text = mermaid(flow.picture(title))
        case Format.HTML:
            text = observed_page(flow, title, [*notes, *stuck])
        case Format.JSON:
            text = _json({**flow.as_dict(), "notes": notes})
        case _:
            raise ConfigurationError(f"{format_} describes what is declared; --observed has mermaid, json and html")
    written(text, output)
    for line in [*notes, *stuck]:
        err().print(line, markup=False, highlight=False)


def drawn(capability: Capability, format_: Format, findings: list[Finding], title: str) -> str:
    """The text of the picture, page, document or file.

    Raises:
        ConfigurationError: AsyncAPI was asked for of several services: a document describes one.
    """
    match format_:
        case Format.MERMAID:
            return mermaid(declared_picture(capability, title))
        case Format.HTML:
            return page(capability, findings, title)
        case Format.MARKDOWN:
            return markdown(capability, title)
        case Format.JSON:
            return to_json(capability, [each.as_dict() for each in findings])
        case Format.ASYNCAPI:
            names = [each.name for each in capability.services]
            if len(names) != 1:
                raise ConfigurationError(f"AsyncAPI has one document a service; add --service with one of {names}")
            return _json(asyncapi(capability, names[0]))


def written(text: str, output: Path | None) -> None:
    """To a file or to standard output.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror}") from None
    err().print(f"wrote {output}", markup=False, highlight=False)


def _json(found: Any) -> str:
    return orjson.dumps(found, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()
