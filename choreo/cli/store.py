"""`choreo store plan | apply | stats | purge`: the idempotency stores of an app's services."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from choreo.app import App
from choreo.cli.console import FAILED, AsJson, Target, load_app, out, print_json, reported, run_async, seconds
from choreo.errors import ConfigurationError
from choreo.instances import INSTANCES, TimerStore
from choreo.opening import STORES, open_store
from choreo.ports import IdempotencyStore, StoreStats
from choreo.runtime.clock import SystemClock

store = typer.Typer(help="Look after the idempotency stores: their schema, what they hold.", no_args_is_help=True)

Url = Annotated[str, typer.Option("--store", envvar="CHOREO_STORE", help=f"{STORES}; {{service}} may stand in PATH.")]
Only = Annotated[list[str] | None, typer.Option("--service", help="A service, again for more; all unless given.")]


@store.command()
@reported
def plan(
    target: Target,
    url: Url,
    service: Only = None,
    sql: Annotated[bool, typer.Option("--sql", help="The statements, for those who run their own DDL.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say what `apply` would do to the schema; exit 1 if there is anything to do."""

    async def statements(_: str, opened: IdempotencyStore) -> list[str]:
        return list(await opened.plan())

    found: dict[str, list[str]] = _each(target, url, service, statements)
    wanted = list(dict.fromkeys(statement for each in found.values() for statement in each))
    if as_json:
        print_json({"ok": not wanted, "services": found})
    elif sql:
        for statement in wanted:
            typer.echo(f"{statement.rstrip().rstrip(';')};")
    else:
        for name, each in found.items():
            colour, said = ("red", f"{len(each)} statements to run") if each else ("green", "up to date")
            out().print(f"{name}: [{colour}]{said}[/]")
    if wanted and not sql:
        raise typer.Exit(FAILED)


@store.command()
@reported
def apply(target: Target, url: Url, service: Only = None) -> None:
    """Create the schema, or bring an older one up to this version."""

    async def applied(_: str, opened: IdempotencyStore) -> int:
        before = await opened.plan()
        await opened.apply()
        return len(before)

    for name, count in _each(target, url, service, applied, creates=True).items():
        out().print(f"{name}: {f'{count} statements done' if count else 'was up to date'}")


@store.command()
@reported
def stats(target: Target, url: Url, service: Only = None, as_json: AsJson = False) -> None:
    """Keys, claims in flight, unsent emits and progress, by group."""

    async def counted(_: str, opened: IdempotencyStore) -> dict[str, StoreStats]:
        return dict(await opened.stats())

    found: dict[str, StoreStats] = {}
    for each in _each(target, url, service, counted).values():
        found.update(each)
    if as_json:
        print_json({group: counts._asdict() for group, counts in found.items()})
        return
    names = (field.replace("_ms", " (UTC)") for field in StoreStats._fields)
    table = Table("group", *names)
    for group, counts in found.items():
        times = (_when(counts.oldest_ms), _when(counts.progress_ms))
        table.add_row(group, *(f"{count:,}" for count in counts[:3]), *times)
    out().print(table)


@store.command()
@reported
def purge(
    target: Target,
    url: Url,
    service: Only = None,
    ttl: Annotated[str, typer.Option(help="How long, in log time, a duplicate may come after the first.")] = "7d",
    as_json: AsJson = False,
) -> None:
    """Forget keys that are older than `--ttl` before their group's progress, and instances of processes that ended
    longer ago than their `retention=` says; running services do so by themselves."""
    app, ttl_ms = load_app(target), int(_ttl_s(ttl) * 1000)

    async def purged(name: str, opened: IdempotencyStore) -> dict[str, int]:
        group, topics, process = app.services[name].group, app.input_topics(name), app.processes.get(name)
        found = {"keys": await _all(lambda: opened.purge(group, topics, ttl_ms))}
        retention_s = process.retention_s if process is not None else None
        if retention_s is not None and INSTANCES in opened.transaction_types:
            held, retention_ms = cast(TimerStore, opened), int(retention_s * 1000)
            found["instances"] = await _all(lambda: held.purge_ended(name, group, topics, retention_ms))
        return found

    found: dict[str, dict[str, int]] = _each(target, url, service, purged)
    if as_json:
        print_json(found)
    else:
        for name, counts in found.items():
            said = [f"{counts['keys']:,} keys forgotten"]
            said += [f"{counts['instances']:,} ended instances deleted"] if "instances" in counts else []
            out().print(f"{name}: {', '.join(said)}")


async def _all(delete: Callable[[], Awaitable[int]]) -> int:
    """Slice by slice; how many in all."""
    total = 0
    while gone := await delete():
        total += gone
    return total


def _each(
    target: str,
    url: str,
    services: list[str] | None,
    ask: Callable[[str, IdempotencyStore], Awaitable[Any]],
    *,
    creates: bool = False,
) -> dict[str, Any]:
    """What `ask` says of each service's store, which is open meanwhile; only with `creates` may it be a new one."""
    app: App = load_app(target)
    if url == "changelog":
        raise ConfigurationError(
            "a changelog has no schema, and its keys are held by the services that run; its topics: "
            "`choreo topics plan --store changelog`"
        )
    names = [plan.service.name for plan in app.plans(services or list(app.services))]
    if not creates:
        for name in names:
            _require_file(url, name)

    async def asked() -> dict[str, Any]:
        found = {}
        for name in names:
            group = app.services[name].group
            clock = SystemClock()
            opened = open_store(url, name, group, None, clock=clock, lease_s=30.0, topic_prefix=app.topic(""))
            await opened.open()
            try:
                found[name] = await ask(name, opened)
            finally:
                await opened.close()
        return found

    result: dict[str, Any] = run_async(asked())
    return result


def _require_file(url: str, service: str) -> None:
    """Looking at a store must not create one: a mistyped path is an error."""
    kind, _, rest = url.partition(":")
    path = Path(rest.replace("{service}", service))
    if kind == "sqlite" and rest not in ("", ":memory:") and not path.exists():
        raise ConfigurationError(
            f"there is no store at {path}; give the --store that the services run on, or create it with "
            "`choreo store apply`"
        )


def _ttl_s(text: str) -> float:
    try:
        return seconds(text)
    except ConfigurationError:
        raise ConfigurationError(f"--ttl {text}: write a number and s, m, h, d or w, such as 7d") from None


def _when(time_ms: int | None) -> str:
    if time_ms is None:
        return "unknown"
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
