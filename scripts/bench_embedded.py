"""Handler calls a second of four services in one process on the embedded broker: an order goes through all of them.

    python scripts/bench_embedded.py [--orders 2000] [--rounds 3] [--json]

The log, the keys and the offsets are in one SQLite file. Of the CPU time all threads count, SQLite's too; the calls a
second of CPU are what to compare on a machine that has other things to do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from choreo import App, Event, Service
from choreo.runtime.collector import collect_less

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
        async with app.running(broker=f"embedded:{folder}/log.db", create_topics=True) as running:
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    collect_less()  # as `choreo run` does
    took = [asyncio.run(run(asked.orders)) for _ in range(asked.rounds)]
    calls = 4 * asked.orders
    found = {
        "calls_per_s": calls / median(wall_s for wall_s, _ in took),
        "calls_per_cpu_s": calls / median(cpu_s for _, cpu_s in took),
        "cpu_us_per_call": median(cpu_s for _, cpu_s in took) / calls * 1e6,
    }
    print(json.dumps(found, indent=2) if asked.json else "\n".join(f"{k:18} {v:10.0f}" for k, v in found.items()))


if __name__ == "__main__":
    main()
