"""`choreo check`: declarations against each other, a release, instances in flight, and known anti-patterns."""

from typing import Annotated

import typer

from choreo.cli.capabilities import TARGETS_HELP, load_capability, print_findings, read_capability
from choreo.cli.console import FAILED, AsJson, err, load_app, out, print_json, reported, run_async
from choreo.errors import ConfigurationError
from choreo.flow.advice import advice
from choreo.flow.consistency import consistency
from choreo.flow.endless import endless
from choreo.flow.findings import Finding, ordered, silence
from choreo.flow.inflight import stranded
from choreo.flow.released import against as against_release
from choreo.looking import connected
from choreo.process.interpreting import Process


@reported
def check(
    targets: Annotated[
        list[str] | None, typer.Argument(metavar="MODULE:APP | FILE.json ...", help=TARGETS_HELP)
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="The capability file of the release that runs: what would break?"),
    ] = None,
    instances: Annotated[
        bool, typer.Option("--instances", help="Ask the store: which instances of processes would a deploy strand?")
    ] = False,
    store: Annotated[
        str | None, typer.Option(envvar="CHOREO_STORE", help="With --instances: postgresql://... or sqlite:PATH.")
    ] = None,
    broker: Annotated[
        str | None, typer.Option(envvar="CHOREO_BROKER", help="With --instances: embedded:PATH, whose file has them.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="ID[:WHERE]", help="Silence this finding; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what is declared. Exit 1 while a violation stands; improvements and information are advice."""
    capability = load_capability(targets or [])
    processes = _processes(targets or [])
    findings = [*consistency(capability), *advice(capability), *endless(processes)]
    if against is not None:
        findings += against_release(capability, read_capability(against))
    if instances:
        findings += _stranded(processes, store, broker)
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


def _processes(targets: list[str]) -> list[Process]:
    """Those of the apps; a capability file has none."""
    apps = [load_app(target) for target in targets if not target.endswith(".json")]
    return [process for app in apps for process in app.processes.values()]


def _stranded(processes: list[Process], store: str | None, broker: str | None) -> list[Finding]:
    if not processes:
        raise ConfigurationError("--instances: none of what is named is an app with a process manager or a saga")

    async def found() -> list[Finding]:
        each: list[Finding] = []
        for process in processes:
            async with connected(process, store=store, broker=broker) as opened:
                each += stranded(process, await opened.census(process.name))
        return each

    result: list[Finding] = run_async(found())
    return result
