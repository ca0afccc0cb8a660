"""`choreo schemas export | check`: JSON Schemas of an app's events, and whether a change of them breaks anybody."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from choreo.binding import BoundHandler
from choreo.cli.console import FAILED, AsJson, load_app, out, print_json, reported
from choreo.errors import ConfigurationError
from choreo.schemas import checking, released
from choreo.schemas.exporting import Contract, Version, contracts

schemas = typer.Typer(help="Write the JSON Schemas of events, and check a change of them.", no_args_is_help=True)

Targets = Annotated[
    list[str], typer.Argument(metavar="MODULE:APP...", help="One App or several that share a folder of schemas.")
]
_COLOURS = {"violation": "red", "improvement": "yellow", "information": "dim"}


@schemas.command()
@reported
def export(
    targets: Targets,
    out_folder: Annotated[Path, typer.Option("--out", help="The folder; it is made what the App says.")] = Path(
        "schemas"
    ),
    only_check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 if files differ from the declarations.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a JSON Schema for every event version handled or emitted, as TYPE/VERSION.json; delete what is stale."""
    declared = _declared(targets)[0]
    if out_folder.exists() and not out_folder.is_dir():
        raise ConfigurationError(f"{out_folder} is no folder; name another with --out")
    try:
        act = released.differing_files if only_check else released.write_files
        changed = act(out_folder, declared.values())
    except OSError as error:
        raise ConfigurationError(f"{error.filename or out_folder}: {error.strerror}") from None
    if as_json:
        print_json({"folder": str(out_folder), "versions": len(declared), "changed": changed})
    else:
        for name, state in changed.items():
            said = state if only_check else {"stale": "deleted", "missing": "written"}.get(state, "written anew")
            out().print(f"{said}: {escape(name)}", highlight=False)
        colour, count = ("red" if only_check and changed else "green"), len(changed)
        ends = "differ from the declarations; run it without --check" if only_check and changed else "changed"
        out().print(f"[{colour}]{len(declared)} event versions, {count} files {ends}[/]", highlight=False)
    if only_check and changed:
        raise typer.Exit(FAILED)


@schemas.command()
@reported
def check(
    targets: Targets,
    against: Annotated[
        str, typer.Option("--against", metavar="GIT_REF|DIR", help="What was released: a folder, else a commit.")
    ],
    mode: Annotated[
        str, typer.Option(help=f"{', '.join(checking.POLICIES)}, or one of them with {checking.TRANSITIVE}.")
    ] = "lenient",
    folder: Annotated[
        str, typer.Option(help="Where the schemas are in the commit, from the current folder.")
    ] = "schemas",
    as_json: AsJson = False,
) -> None:
    """Say what the declarations break of the released schemas, and which handlers; exit 1 at a violation."""
    policy, transitive = checking.policy_of(mode)
    declared, handlers = _declared(targets)
    states = _states(against, folder, transitive)
    findings = checking.check(declared, states, handlers, policy)
    levels = Counter(each.level for each in findings)
    if as_json:
        print_json(
            {
                "ok": not levels["violation"],
                "against": against,
                "mode": mode,
                "versions": len(declared),
                "states": len(states),
                "findings": [asdict(each) for each in findings],
            }
        )
    else:
        _print(findings)
        colour = "red" if levels["violation"] else "green"
        said = ", ".join(f"{count} {level}s" for level, count in levels.items()) or "nothing to say"
        out().print(
            f"[{colour}]{len(declared)} event versions against {escape(against)} ({mode}): {said}[/]", highlight=False
        )
    if levels["violation"]:
        raise typer.Exit(FAILED)


def _declared(targets: Sequence[str]) -> tuple[dict[Version, Contract], list[BoundHandler]]:
    apps = [load_app(target) for target in targets]
    handlers = [bound for app in apps for service in app.services for bound in app.bound(service)]
    return contracts(handlers, [flow.starts for app in apps for flow in app.flows]), handlers


def _states(against: str, folder: str, transitive: bool) -> list[released.Released]:
    if Path(against).is_dir():
        if transitive:
            raise ConfigurationError(f"{against} is a folder and has one state; a mode of all states needs a commit")
        return [released.in_folder(Path(against))]
    return released.in_history(against, folder) if transitive else [released.in_commit(against, folder)]


def _print(findings: Sequence[checking.Finding]) -> None:
    for each in findings:
        where = f"{each.type} v{each.version}" + (f" {each.path}" if each.path else "")
        colour = _COLOURS[each.level]
        out().print(f"[{colour}]{each.level}[/] [bold]{escape(where)}[/] {each.id}", highlight=False)
        out().print(f"    {escape(each.message)}", highlight=False)
        if each.handlers:
            out().print(f"    breaks {escape(', '.join(each.handlers))}", highlight=False)
    if any(each.level == "violation" and each.id != "version_removed" for each in findings):
        out().print("[dim]A new version beside the old one is always fine, with an upcaster from it.[/]")
