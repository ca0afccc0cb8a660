"""`choreo graph`: the declared flow as a picture, a page, a document or data."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from choreo.cli.capabilities import TARGETS_HELP, load_capability, print_findings
from choreo.cli.console import err, reported
from choreo.errors import ConfigurationError
from choreo.flow.asyncapi import asyncapi
from choreo.flow.catalogue import page
from choreo.flow.consistency import shape
from choreo.flow.finding import Finding
from choreo.flow.mermaid import mermaid
from choreo.flow.model import Capability
from choreo.flow.picture import declared_picture


class Format(StrEnum):
    """What to write."""

    MERMAID = "mermaid"
    JSON = "json"
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
) -> None:
    """Draw the flow that is declared, and say on standard error where it does not fit together."""
    whole = load_capability(targets or [])
    chosen = whole.of(*service) if service else whole
    # Of the whole: what a part does not read, another part may.
    findings = shape(whole)
    written(drawn(chosen, format_, findings, " ".join(targets or [])), output)
    print_findings(findings)


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
        case Format.JSON:
            found = {**capability.model_dump(mode="json"), "findings": [each.as_dict() for each in findings]}
            return _json(found)
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
