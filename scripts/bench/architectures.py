"""Order fulfilment in the mesh, as a saga and as a process manager: size of the code, latency, throughput.

Each round runs the three one after the other, each on an embedded broker in a file of its own, with the same orders
of the shipped file. Latency: from `order.placed` to `order.shipped`, by their times on the log, of orders that come
one every 50 ms. Throughput: orders that are published at once, until nothing is left to do. Ratios are to the mesh of
the same round; that of processor time is the one to trust on a busy machine.
"""

from __future__ import annotations

import ast
import asyncio
import sqlite3
import time
import tokenize
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, cast

from choreo import App
from choreo.envelope import read as read_envelope
from choreo.running import Running
from choreo.transports.embedded import EmbeddedTransport
from handlers.order_fulfilment import ledger
from handlers.order_fulfilment.app import app as mesh
from handlers.order_fulfilment.events import OrderPlaced, OrderShipped
from handlers.order_fulfilment.orders import read, shipped_lines
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider
from handlers.order_fulfilment.payments.provider import PaymentProvider
from handlers.order_process.app import app as process
from handlers.order_saga.app import app as saga
from scripts.bench.markdown import table
from scripts.bench.stage import ROOT, Stage, say

APPS = {"mesh": mesh, "saga": saga, "process": process}
TITLE = "Three architectures"
SINGLE, AT_ONCE, EVERY_S = 100, 1_000, 0.05
POLL_S = 0.01
OBEYING: tuple[tuple[str, ...], ...] = (("order_saga/commands.py",), ("order_saga/services.py",))
OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "mesh": (
        ("order_fulfilment/inventory/service.py", "reserve", "release"),
        ("order_fulfilment/payments/service.py", "charge", "refund"),
        ("order_fulfilment/app.py",),
    ),
    "saga": (*OBEYING, ("order_saga/app.py",)),
    "process": (*OBEYING, ("order_process/process.py",), ("order_process/app.py",)),
}
"""Files, or functions of them, that one has beside the events and the work that it shares with the others."""


class Measured(NamedTuple):
    """One run: latencies in seconds, orders a second, seconds of processor time and events on the log an order, and
    whether the ledgers agree."""

    latency_s: float
    latency_p99_s: float
    orders_s: float
    cpu_s: float
    events: float
    ok: bool


def code_lines(path: str, *functions: str) -> int:
    """Lines with code on them, neither comment nor docstring; of these functions, or of the whole file."""
    file = ROOT / "handlers" / path
    tree = ast.parse(file.read_text())
    with file.open("rb") as source:
        skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
        skipped |= {tokenize.ENCODING, tokenize.ENDMARKER}
        lines = {
            line
            for token in tokenize.tokenize(source.readline)
            if token.type not in skipped
            for line in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    if functions:
        found = [each for each in tree.body if getattr(each, "name", "") in functions]
        assert len(found) == len(functions), f"{path} has not all of {functions}"
        wanted: set[int] = set()
        for each in cast(list[ast.FunctionDef], found):
            wanted |= set(range(each.decorator_list[0].lineno, (each.end_lineno or each.lineno) + 1))
        lines &= wanted
    return len(lines)


async def settled(running: Running) -> None:
    """Return when nothing is left to do, three looks in a row."""
    quiet = 0
    while quiet < 3:
        left = await cast(EmbeddedTransport, running.transport).unread()
        left += sum(worker.engine.unfinished() for worker in running.workers.values())
        quiet = 0 if left else quiet + 1
        await asyncio.sleep(POLL_S)


async def run_one(app: App, singly: list[OrderPlaced], at_once: list[OrderPlaced], folder: Path) -> Measured:
    """One run of one of them."""
    file = folder / "bench.db"
    with FakePaymentProvider(timeouts=0) as provider:
        async with app.running(
            broker=f"embedded:{file}", overrides={PaymentProvider: provider}, create_topics=True
        ) as running:
            await asyncio.sleep(1.0)  # members join, partitions are dealt out
            for order in singly:
                await running.publish(order)
                await asyncio.sleep(EVERY_S)
            await settled(running)
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            await running.publisher.publish_many([(order, None) for order in at_once])
            await settled(running)
            orders_s = len(at_once) / (time.perf_counter() - began_s)
            cpu_s = (time.process_time() - began_cpu_s) / len(at_once)
            records = await running.transport.scan([spec.name for spec in app.topic_specs()], since_ms=0)
        statement = [ledger.row_of("provider", *entry) for entry in provider.statement()]
    with closing(sqlite3.connect(file)) as db:
        rows, stock = [*ledger.read_rows(db.execute), *statement], ledger.read_stock(db.execute)
    orders = {str(order.order_id) for order in (*singly, *at_once)}
    placed: dict[str, int] = {}
    latencies = []
    for record in sorted(records, key=lambda each: each.timestamp_ms):
        type_, key = read_envelope(record.headers, record.value or b"")[0].type, (record.key or b"").decode()
        if type_ == OrderPlaced.event_type:
            placed[key] = record.timestamp_ms
        elif type_ == OrderShipped.event_type and key in {str(order.order_id) for order in singly}:
            latencies.append((record.timestamp_ms - placed[key]) / 1000)
    return Measured(
        median(latencies),
        quantiles(latencies, n=100)[98],
        orders_s,
        cpu_s,
        len(records) / len(orders),
        ledger.reconcile(rows, orders=orders, stock=stock).ok,
    )


def measure(stage: Stage) -> dict[str, Any]:
    """In rounds; the ledgers of every run have to agree.

    Raises:
        SystemExit: They do not.
    """
    found = {order.order_id: order for _, order in read(shipped_lines()) if isinstance(order, OrderPlaced)}
    orders = list(found.values())
    rounds: list[dict[str, Measured]] = []
    for number in range(stage.asked.rounds):
        rounds.append({})
        for name, app in APPS.items():
            singly, at_once = orders[:SINGLE], orders[SINGLE : SINGLE + stage.scaled(AT_ONCE, 100)]
            folder = stage.folders.mktemp("architectures")
            rounds[-1][name] = asyncio.run(run_one(app, singly, at_once, folder))
            say(f"architectures: round {number + 1} of {stage.asked.rounds}, {name}: {rounds[-1][name]}")
            if not rounds[-1][name].ok:
                raise SystemExit(f"{name}: the ledgers do not agree")
    return {"rows": [row(name, rounds) for name in APPS]}


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    rows = found["rows"]
    return table(list(rows[0]), [list(each.values()) for each in rows])


def row(name: str, rounds: list[dict[str, Measured]]) -> dict[str, Any]:
    """What is said of one of them: medians of the rounds."""
    own = [measured[name] for measured in rounds]
    return {
        "architecture": name,
        "lines of code": sum(code_lines(*each) for each in OWN[name]),
        "events an order": round(median(each.events for each in own), 1),
        "latency p50 ms": round(1000 * median(each.latency_s for each in own)),
        "p99 ms": round(1000 * median(each.latency_p99_s for each in own)),
        "times mesh's p50": round(median(each[name].latency_s / each["mesh"].latency_s for each in rounds), 2),
        "orders/s": round(median(each.orders_s for each in own)),
        "of mesh's": round(median(each[name].orders_s / each["mesh"].orders_s for each in rounds), 2),
        "CPU ms an order": round(1000 * median(each.cpu_s for each in own), 2),
        "times mesh's CPU": round(median(each[name].cpu_s / each["mesh"].cpu_s for each in rounds), 2),
    }
