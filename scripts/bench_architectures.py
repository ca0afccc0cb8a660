"""Order fulfilment in the mesh, as a saga and as a process manager: size of the code, latency, throughput.

    python scripts/bench_architectures.py [--orders 1000] [--rounds 3] [--json]

Each round runs the three one after the other, each on an embedded broker in a file of its own, with the same orders
of the shipped file. Latency: from `order.placed` to `order.shipped`, by their times on the log, of orders that come
one every 50 ms. Throughput: orders that are published at once, until nothing is left to do. Ratios are to the mesh of
the same round; that of processor time is the one to trust on a busy machine. Exit 1 if the ledgers of any of them do
not agree.
"""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import sqlite3
import sys
import tempfile
import time
import tokenize
from contextlib import closing
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo import App  # noqa: E402
from choreo.envelope import read as read_envelope  # noqa: E402
from choreo.running import Running  # noqa: E402
from choreo.transports.embedded import EmbeddedTransport  # noqa: E402
from handlers.order_fulfilment import ledger  # noqa: E402
from handlers.order_fulfilment.app import app as mesh  # noqa: E402
from handlers.order_fulfilment.events import OrderPlaced, OrderShipped  # noqa: E402
from handlers.order_fulfilment.orders import read, shipped_lines  # noqa: E402
from handlers.order_fulfilment.payments.fake_provider import FakePaymentProvider  # noqa: E402
from handlers.order_fulfilment.payments.provider import PaymentProvider  # noqa: E402
from handlers.order_process.app import app as process  # noqa: E402
from handlers.order_saga.app import app as saga  # noqa: E402
from scripts.bench_stores import say  # noqa: E402

APPS = {"mesh": mesh, "saga": saga, "process": process}
SINGLE, EVERY_S = 100, 0.05
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


async def measure(app: App, singly: list[OrderPlaced], at_once: list[OrderPlaced], folder: Path) -> Measured:
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


def main() -> int:
    """Measure, print, and say whether the ledgers agreed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--orders", type=int, default=1000, help="published at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = {order.order_id: order for _, order in read(shipped_lines()) if isinstance(order, OrderPlaced)}
    orders = list(found.values())
    rounds: list[dict[str, Measured]] = []
    for number in range(options.rounds):
        rounds.append({})
        for name, app in APPS.items():
            with tempfile.TemporaryDirectory() as folder:
                singly, at_once = orders[:SINGLE], orders[SINGLE : SINGLE + options.orders]
                rounds[-1][name] = asyncio.run(measure(app, singly, at_once, Path(folder)))
            say(f"round {number + 1}, {name}: {rounds[-1][name]}")
    table = [row(name, rounds) for name in APPS]
    if options.json:
        print(json.dumps(table, indent=2))
    else:
        for line in (list(table[0]), *(list(each.values()) for each in table)):
            print("| " + " | ".join(str(each) for each in line) + " |")
    return 0 if all(each.ok for measured in rounds for each in measured.values()) else 1


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


if __name__ == "__main__":
    sys.exit(main())
