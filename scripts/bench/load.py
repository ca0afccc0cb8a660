"""Orders that are sent at a pace, and how long each takes until its payment can be read: a hop, seen from outside.

The order's id is the time at which it was due, which comes back in the payment: so an order that had to wait in the
sender, because the broker was behind, is late by that too. One process sends and reads, so there is one clock.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import uuid
from typing import Any

from scripts.bench.orders import KEYS, PLACEHOLDER, Record, order

PERCENTILES = (50, 99, 99.9)
SWITCH_S, TICK_S = 0.0005, 0.001
READY_S, DRAIN_S = 60.0, 30.0
LINGER_MS = 1
"""Without, each order is a request of its own: at 6,500/s they wait in line for the broker, whoever reads them."""


class Hop:
    """Sends into a topic and reads what comes out of another, committed only."""

    def __init__(self, servers: str, topic: str, out: str) -> None:
        from confluent_kafka import Consumer, Producer

        sys.setswitchinterval(SWITCH_S)  # the reader is not to wait 5 ms for the sender's turn to end
        self._topic = topic
        self._records = [Record(order(number, PLACEHOLDER), str(PLACEHOLDER)) for number in range(KEYS)]
        self._headers = self._records[0].headers(sampled=False)
        self._producer: Any = Producer({"bootstrap.servers": servers, "linger.ms": LINGER_MS})
        self._consumer: Any = Consumer(
            {
                "bootstrap.servers": servers,
                "group.id": f"load-{uuid.uuid4()}",
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 50,
            }
        )
        self._consumer.subscribe([out])
        self.sent = 0
        self.back: list[tuple[int, int]] = []
        """When each was due and when it was read, in ns of one clock."""
        self._ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        poll, back, now = self._consumer.poll, self.back, time.monotonic_ns
        while not self._ended:
            record = poll(0.1)
            if record is not None and not record.error():
                back.append((uuid.UUID(json.loads(record.value())["order_id"]).int, now()))

    def send(self, due_ns: int) -> None:
        """One order, due then."""
        record, id_ = self._records[self.sent % KEYS], str(uuid.UUID(int=due_ns)).encode()
        value = record.value.replace(str(PLACEHOLDER).encode(), id_)
        headers = [(name, id_ if name == "ce_id" else text) for name, text in self._headers]
        while True:
            try:
                self._producer.produce(self._topic, value, record.key, headers=headers)
                break
            except BufferError:
                self._producer.poll(0.01)
        self.sent += 1

    def paced(self, per_s: float, seconds: float) -> list[float]:
        """Send evenly for so long; the latency of each in ms, ascending.

        Raises:
            SystemExit: Not all came back.
        """
        first, began_ns, count = len(self.back), time.monotonic_ns(), int(per_s * seconds)
        for number in range(count):
            due_ns = began_ns + int(number / per_s * 1e9)
            while (ahead_s := (due_ns - time.monotonic_ns()) / 1e9) > 0:
                self._producer.poll(0)
                time.sleep(min(TICK_S, ahead_s))
            self.send(due_ns)
            self._producer.poll(0)
        self.settle(DRAIN_S)
        return sorted((read_ns - due_ns) / 1e6 for due_ns, read_ns in self.back[first:])

    def capacity(self, count: int) -> float:
        """Events a second when they are all there: from the first that is sent to the last that is back.

        Not between two of them that come back: they come by the transaction, hundreds at once.
        """
        began_ns = time.monotonic_ns()
        for _ in range(count):
            self.send(time.monotonic_ns())
        self.settle(READY_S)
        return count / ((self.back[-1][1] - began_ns) / 1e9)

    def settle(self, within_s: float) -> None:
        """Until all that was sent has come back."""
        until_s = time.monotonic() + within_s
        self._producer.flush(within_s)
        while len(self.back) < self.sent:
            if time.monotonic() > until_s:
                raise SystemExit(f"{len(self.back)} of {self.sent} came back within {within_s:g} s")
            time.sleep(0.005)

    def close(self) -> None:
        """End the reader."""
        self._ended = True
        self._reader.join()
        self._consumer.close()


def load(servers: str, topic: str, out: str, *, burst: int, seconds: float, rates: list[float]) -> dict[str, Any]:
    """Drive a loop that runs elsewhere.

    Args:
        burst: So many at once, by which capacity is measured; 0: it is not.
        rates: Events a second, each for `seconds`.
    """
    hop = Hop(servers, topic, out)
    for _ in range(200):
        hop.send(time.monotonic_ns())
    hop.settle(READY_S)  # partitions are assigned, code has run
    found: dict[str, Any] = {"points": []}
    if burst:
        found["per_s"] = hop.capacity(burst)
    for per_s in rates:
        late_ms = hop.paced(per_s, seconds)
        found["points"].append(
            {"per_s": per_s, "events": len(late_ms)}
            | {f"p{share:g}_ms": late_ms[int(len(late_ms) * share / 100)] for share in PERCENTILES}
        )
    hop.close()
    return found
