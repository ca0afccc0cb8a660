"""`choreo check`: declarations against each other, against a release, and against known anti-patterns."""

from typing import Annotated

import typer

from choreo.cli.capabilities import TARGETS_HELP, load_capability, print_findings, read_capability
from choreo.cli.console import FAILED, AsJson, err, out, print_json, reported
from choreo.flow.advice import advice
from choreo.flow.consistency import consistency
from choreo.flow.findings import ordered, silence
from choreo.flow.released import against as against_release


@reported
def check(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE:APP | FILE.json ...", help=TARGETS_HELP)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="The capability file of the release that runs: what would break?"),
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="ID[:WHERE]", help="Silence this finding; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what is declared. Exit 1 while a violation stands; improvements and information are advice."""
    capability = load_capability(targets or [])
    findings = [*consistency(capability), *advice(capability)]
    if against is not None:
        findings += against_release(capability, read_capability(against))
    stand, idle = silence(ordered(findings), ignore or [])
    for entry in idle:
        err().print(f"--ignore {entry} silences nothing; it can go", markup=False, highlight=False)
    failed = any(each.level == "violation" for each in stand)
    if as_json:
        silenced = len(findings) - len(stand)
        print_json({"ok": not failed, "silenced": silenced, "findings": [each.as_dict() for each in stand]})
    else:
        print_findings(stand)
        for page in sorted({each.page for each in stand}):
            out().print(f"see {page}", markup=False, highlight=False)
        if not stand:
            out().print("nothing found", highlight=False)
    if failed:
        raise typer.Exit(FAILED)
