"""Capabilities as arguments of commands: of apps that can be imported, and of files that were exported."""

from collections.abc import Sequence
from pathlib import Path

from choreo.cli.console import err, load_app
from choreo.errors import ConfigurationError
from choreo.flow.findings import Finding
from choreo.flow.model import Capability, from_json, merge

TARGETS_HELP = "Apps, and capability files that end in .json; put together to one flow."
_COLOURS = {"violation": "red", "improvement": "yellow", "information": "cyan"}


def load_capability(targets: Sequence[str]) -> Capability:
    """What all targets declare together.

    Raises:
        ConfigurationError: One cannot be read, or two declare one service differently.
    """
    if not targets:
        raise ConfigurationError("name at least one MODULE:APP, such as shop.app:app, or capability FILE.json")
    return merge({target: _load(target) for target in targets})


def read_capability(file: str) -> Capability:
    """What a capability file says.

    Raises:
        ConfigurationError: There is no such file, or it is none.
    """
    try:
        return from_json(Path(file).read_bytes(), file)
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from None


def print_findings(findings: Sequence[Finding]) -> None:
    """One line each on standard error; where it is explained below."""
    for each in findings:
        colour = _COLOURS[each.level]
        err().print(f"[{colour}]{each.level}[/] [bold]{each.id}[/] ", end="", highlight=False)
        err().print(f"{each.where}: {each.message}", markup=False, highlight=False)


def _load(target: str) -> Capability:
    return read_capability(target) if target.endswith(".json") else load_app(target).capability()
