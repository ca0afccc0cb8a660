"""A process that is measured, or that stands beside one: `python -m scripts.bench.child WHAT [JSON]`.

run     one `Run`; its Result on standard output
fill    orders and parcels into topics
receive a receiver of OTLP, until standard input ends
embedded  four services on the embedded broker
load    paced orders, and how long each takes to come back: `load.py`
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from typing import Any

from scripts.bench.running import Result, Run


def run(run: Run) -> Result:
    """In this process."""
    if run.loop == "choreo":
        from scripts.bench.ours import choreo_loop as loop
    else:
        from scripts.bench.bare import LOOPS

        loop = LOOPS[run.loop]  # type: ignore[assignment]
    found: Any = loop(run)
    return asyncio.run(found) if inspect.iscoroutine(found) else found


def fill(servers: str, topics: list[tuple[str, int, int, int]]) -> None:
    """Of each topic: its name, how many, percent sampled, bytes of the payload (0: an order)."""
    from confluent_kafka import Producer

    from scripts.bench.orders import Record, orders, parcels

    producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "partitioner": "murmur2_random"})
    made: dict[tuple[int, int], list[Record]] = {}
    for topic, count, percent, payload_bytes in topics:
        if (count, payload_bytes) not in made:
            made[count, payload_bytes] = list(parcels(count, payload_bytes) if payload_bytes else orders(count))
        for number, record in enumerate(made[count, payload_bytes]):
            headers: Any = record.headers(sampled=number % 100 < percent)
            while True:
                try:
                    producer.produce(topic, record.value, record.key, headers=headers)
                    break
                except BufferError:
                    producer.poll(0.1)
            producer.poll(0)
    if left := producer.flush(60):
        raise SystemExit(f"{left} records were not written")


def receive() -> None:
    """Take spans until standard input ends, then say how many came."""
    from choreo.testing.otlp import OtlpReceiver

    with OtlpReceiver() as receiver:
        print(receiver.endpoint, flush=True)
        sys.stdin.read()
        print(len(receiver.spans()), flush=True)


def main() -> None:
    """Do what the arguments say."""
    what, given = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    if what == "receive":
        receive()
    elif what == "fill":
        fill(*given)
    elif what == "embedded":
        from scripts.bench.embedded import run_here

        print(json.dumps(run_here(given)), flush=True)
    elif what == "load":
        from scripts.bench.load import load

        print(json.dumps(load(**given)), flush=True)
    else:
        asked = Run(*given)
        if asked.profile:
            from scripts.bench.profiles import profiled

            profiled(lambda: run(asked), asked.profile)
            return
        print(json.dumps(run(asked)), flush=True)


if __name__ == "__main__":
    main()
