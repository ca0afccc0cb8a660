"""Handler calls a second of four services in one process on the embedded broker: an order goes through each."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from statistics import median
from typing import Any

from choreo import App, Event, Service
from choreo.runtime.collector import collecting_less
from scripts.bench.markdown import prose, table
from scripts.bench.running import peak_mb
from scripts.bench.stage import Stage, child, say

TITLE = "Embedded broker"
ORDERS = 2_000
RUN_S_MAX = 120.0
POLL_S = 0.02


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    cents: int


class StockReserved(Event, type="stock.reserved", topic="stock", key="order_id"):
    order_id: str
    cents: int


class PaymentTaken(Event, type="payment.taken", topic="payments", key="order_id"):
    order_id: str
    cents: int


class OrderShipped(Event, type="order.shipped", topic="shipments", key="order_id"):
    order_id: str


inventory, payments, shipping, notifications = map(Service, ("inventory", "payments", "shipping", "notifications"))


@inventory.handler(OrderPlaced)
async def reserve(order: OrderPlaced) -> StockReserved:
    return StockReserved(order_id=order.order_id, cents=order.cents)


@payments.handler(StockReserved)
async def charge(stock: StockReserved) -> PaymentTaken:
    return PaymentTaken(order_id=stock.order_id, cents=stock.cents)


@shipping.handler(PaymentTaken)
async def ship(payment: PaymentTaken) -> OrderShipped:
    return OrderShipped(order_id=payment.order_id)


@notifications.handler(OrderShipped)
async def tell(shipped: OrderShipped) -> None:
    """Whoever ordered."""


async def run(orders: int) -> tuple[float, float]:
    """Seconds, and CPU seconds, from the first order on the log to the last one told."""
    app = App(inventory, payments, shipping, notifications)
    with tempfile.TemporaryDirectory(prefix="choreo-bench-") as folder:
        async with (
            collecting_less(),  # as `choreo run` does
            app.running(broker=f"embedded:{folder}/log.db", create_topics=True) as running,
        ):
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
            for start in range(0, orders, 500):
                batch = [
                    (OrderPlaced(order_id=f"o-{n}", cents=100), f"o-{n}")
                    for n in range(start, min(start + 500, orders))
                ]
                await running.publisher.publish_many(batch)
            counts = [worker.counts for worker in running.workers.values()]
            while sum(each["handled"] for each in counts) < 4 * orders:
                if time.perf_counter() - began_s > RUN_S_MAX:
                    raise SystemExit(f"not done after {RUN_S_MAX:g} s: {[dict(each) for each in counts]}")
                await asyncio.sleep(POLL_S)
            return time.perf_counter() - began_s, time.process_time() - began_cpu_s


def run_here(orders: int) -> dict[str, float]:
    """In this process: seconds, CPU seconds and peak memory."""
    wall_s, cpu_s = asyncio.run(run(orders))
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb()}


def measure(stage: Stage) -> dict[str, Any]:
    """Each round in a process of its own."""
    orders, took = stage.scaled(ORDERS, 200), []
    for number in range(1, stage.asked.rounds + 1):
        took.append(json.loads(child("embedded", orders)))
        say(f"embedded: round {number} of {stage.asked.rounds}: {4 * orders / took[-1]['wall_s']:,.0f} calls/s")
    calls = 4 * orders
    return {
        "orders": orders,
        "calls_per_s": calls / median(each["wall_s"] for each in took),
        "calls_per_s_min": calls / max(each["wall_s"] for each in took),
        "calls_per_s_max": calls / min(each["wall_s"] for each in took),
        "calls_per_cpu_s": calls / median(each["cpu_s"] for each in took),
        "cpu_us": median(each["cpu_s"] for each in took) / calls * 1e6,
        "peak_mb": median(each["peak_mb"] for each in took),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    text = f"""{found["orders"]:,} orders through four services in one process; the log, the keys and the offsets
    in one SQLite file, in one transaction a flush, durable with `synchronous=NORMAL`: what is committed outlives
    the process, however that ends; a power cut may take the last commits, each of them whole."""
    row = (
        f"{found['calls_per_s']:,.0f}",
        f"{found['calls_per_s_min']:,.0f}-{found['calls_per_s_max']:,.0f}",
        f"{found['calls_per_cpu_s']:,.0f}",
        f"{found['cpu_us']:.0f}",
        f"{found['peak_mb']:.0f}",
    )
    heads = ("handler calls/s", "of the rounds", "calls/s of CPU", "CPU us a call", "peak MB")
    return [*prose(text), *table(heads, [row])]
