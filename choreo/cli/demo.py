"""`choreo demo`: order fulfilment on an embedded broker, with its books compared in the end."""

import asyncio
import importlib
import importlib.util
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import choreo
from choreo.app import App
from choreo.cli.console import FAILED, AsJson, err, out, print_json, reported, run_async
from choreo.cli.publish import Line, Outcome, publish_batch
from choreo.cli.tracing import Where, look
from choreo.envelope import read as read_envelope
from choreo.errors import ConfigurationError
from choreo.flow.drawing import tree
from choreo.flow.timeline import Timeline
from choreo.record import Record, last_headers
from choreo.running import Running
from choreo.runtime.emitting import original
from choreo.transports.embedded import EmbeddedTransport

BATCH = 100
POLL_S = 0.05
DECLINED = b"payment.declined"


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run left behind, beside its files."""

    published: Sequence[str]
    outcome: Outcome
    duplicates: int
    records: Sequence[Record]
    elapsed_s: float


@reported
def demo(
    orders: Annotated[Path | None, typer.Option(metavar="FILE", help="Orders as JSON lines.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Keep broker and ledgers here."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run four services over 2,000 orders; exit 1 if their ledgers do not reconcile."""
    package = _package()
    here = folder or Path(tempfile.mkdtemp(prefix="choreo-demo-"))
    log = here / "demo.db"
    if log.exists():
        raise ConfigurationError(f"{log} is there from a former run; give another --dir, or delete it")
    try:
        lines = _lines(package, orders)
        report, timeline = run_async(_demo(package, lines, here))
    finally:
        if folder is None:
            shutil.rmtree(here, ignore_errors=True)
    if as_json:
        print_json({**report.as_dict(), "declined_order": timeline.as_dict() if timeline else None})
    else:
        out().print(report.table())
        if timeline is not None:
            out().print("\nOne declined order, as `choreo trace` draws it:", tree(timeline))
        if folder is not None:
            out().print(f"\nAny other: choreo trace ORDER_ID --broker embedded:{log}", highlight=False)
    if not report.ok:
        raise typer.Exit(FAILED)


async def _demo(package: str, lines: list[Line], here: Path) -> tuple[Any, Timeline | None]:
    app = cast(App, _module(package, "app").app)
    fake = _module(package, "payments.fake_provider").FakePaymentProvider
    port = _module(package, "payments.provider").PaymentProvider
    ledger, broker = _module(package, "ledger"), f"embedded:{here / 'demo.db'}"
    with fake(here / "payment-provider.db") as provider:
        async with app.running(broker=broker, overrides={port: provider}, create_topics=True) as running:
            ran = await _run(app, running, lines)
        statement = [ledger.row_of("provider", *entry) for entry in provider.statement()]
    with closing(sqlite3.connect(here / "demo.db")) as db:
        rows, stock = [*ledger.read_rows(db.execute), *statement], ledger.read_stock(db.execute)
    dead = [told["reason"] for record in ran.records if (told := original(record)).get("reason")]
    report = _module(package, "demo").report(
        rows,
        stock,
        published=ran.published,
        refused=list(ran.outcome.refused.elements()),
        duplicates_dropped=ran.duplicates,
        dead_letters=dead,
        events=len(ran.records) - len(dead),
        elapsed_s=ran.elapsed_s,
    )
    declined = next((each for each in ran.records if last_headers(each.headers).get("ce_type") == DECLINED), None)
    if declined is None:
        return report, None
    flow = read_envelope(declined.headers, declined.value or b"")[0].correlationid
    found = await look(Where(broker), flow, by_key=False, since_ms=0)
    return report, next(iter(found.timelines), None)


async def _run(app: App, running: Running, lines: list[Line]) -> Ran:
    """Publish, wait until all of it is handled, count."""
    outcome, published, begun_s = Outcome(), [], time.monotonic()
    columns = TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    failing = asyncio.ensure_future(running.failed())
    try:
        with Progress(*columns, console=err()) as progress:
            task = progress.add_task("lines published", total=len(lines))
            handling = progress.add_task("deliveries handled", total=None)
            for at in range(0, len(lines), BATCH):
                batch = lines[at : at + BATCH]
                references = await publish_batch(running.publisher, batch, outcome, "order_id")
                published += [reference.id for reference in references]
                progress.advance(task, len(batch))
                await _show(running, progress, handling)
            while not await _show(running, progress, handling) or not _everywhere(app, running):
                if failing.done():
                    failing.result()
                await asyncio.sleep(POLL_S)
        elapsed_s = time.monotonic() - begun_s
    finally:
        failing.cancel()
        await asyncio.gather(failing, return_exceptions=True)
    outcome.print()
    records = await running.transport.scan([spec.name for spec in app.topic_specs()], since_ms=0)
    duplicates = sum(worker.counts["duplicates"] for worker in running.workers.values())
    return Ran(published, outcome, duplicates, records, elapsed_s)


async def _show(running: Running, progress: Progress, task: Any) -> bool:
    """Update the bar; whether nothing is left to do."""
    left = await cast(EmbeddedTransport, running.transport).unread()
    left = max(left, sum(worker.engine.unfinished() for worker in running.workers.values()))
    names = ("handled", "duplicates", "dead_letters")
    done = sum(worker.counts[name] for worker in running.workers.values() for name in names)
    progress.update(task, completed=done, total=done + left)
    return left == 0


def _everywhere(app: App, running: Running) -> bool:
    """Whether every service owns all it reads: what nobody has taken yet counts as unread by nobody."""
    partitions = {spec.name: spec.partitions for spec in app.topic_specs(running.settings.partitions)}
    return all(
        len(worker.leases) == sum(partitions[topic] for topic in worker.topics) for worker in running.workers.values()
    )


def _lines(package: str, orders: Path | None) -> list[Line]:
    shipped = _module(package, "orders")
    try:
        found = shipped.shipped_lines() if orders is None else orders.read_bytes().removesuffix(b"\n").split(b"\n")
    except OSError as error:
        raise ConfigurationError(f"{orders} cannot be read: {error.strerror}") from None
    return list(shipped.read(found))


def _package() -> str:
    """The flow inside the package, where choreo was installed from a wheel, or beside it in the repository."""
    root = Path(choreo.__file__).parent
    if (root / "examples" / "order_fulfilment").is_dir():
        return "choreo.examples.order_fulfilment"
    if not (root.parent / "handlers" / "order_fulfilment").is_dir():
        raise ConfigurationError("the order_fulfilment example is not installed; install choreo from a wheel")
    if str(root.parent) not in sys.path:
        sys.path.insert(0, str(root.parent))
    return "handlers.order_fulfilment"


def _module(package: str, name: str) -> ModuleType:
    return importlib.import_module(f"{package}.{name}")
