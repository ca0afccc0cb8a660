"""`choreo export`: the processes of an app as data, or drawn."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import orjson
import typer

from choreo.cli.console import load_app, reported
from choreo.cli.graph import written
from choreo.errors import ConfigurationError
from choreo.flow.statechart import state_diagram


class Format(StrEnum):
    """What to write."""

    JSON = "json"
    MERMAID = "mermaid"


@reported
def export(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP")],
    process: Annotated[str | None, typer.Option(help="Of this one only.")] = None,
    format_: Annotated[
        Format, typer.Option("--format", help="json: every version; mermaid: a state diagram of the newest.")
    ] = Format.JSON,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file, not standard output.")] = None,
) -> None:
    """Write the definitions of process managers and sagas, which any runtime can interpret."""
    app = load_app(target)
    names = list(app.processes) if process is None else [process]
    if unknown := [name for name in names if name not in app.processes]:
        known = ", ".join(app.processes) or "none"
        raise ConfigurationError(f"{target} has no process {unknown[0]!r}; it has: {known}")
    found = [app.processes[name] for name in names]
    if format_ is Format.MERMAID:
        written("\n".join(state_diagram(each.newest.definition) for each in found), output)
        return
    data = [version.definition.model_dump(mode="json") for each in found for version in each.versions.values()]
    written(orjson.dumps(data, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode(), output)
