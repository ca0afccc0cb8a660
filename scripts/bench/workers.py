"""One and two worker processes of `choreo run --workers`, on the same events."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import uuid
from pathlib import Path
from statistics import median
from typing import Any

from choreo import App, Service
from scripts.bench.markdown import prose, table
from scripts.bench.orders import OrderPlaced, PaymentTaken, taken
from scripts.bench.stage import NotMeasured, Stage, beside, say

TITLE = "Worker processes"
EVENTS, SPIN_US = 30_000, 200
GROUP, ORDERS, PAYMENTS, WORK = "BENCH_GROUP", "BENCH_ORDERS", "BENCH_PAYMENTS", "BENCH_SPIN_US"
TARGET = "scripts.bench.workers:app"
PAIRS = {"changelog": ("kafka", "changelog"), "changelog/confluent": ("kafka+confluent", "changelog")}
ROWS = (("changelog", 0), ("changelog/confluent", 0), ("changelog/confluent", SPIN_US))
READY_S, RUN_S_MAX = 60.0, 120.0
SHARE = 0.1

service = Service(os.environ.get(GROUP, "bench"))


@service.handler(OrderPlaced)
async def take_payment(order: OrderPlaced) -> PaymentTaken:
    """With as many microseconds of work as were asked for."""
    until_s = time.thread_time() + int(os.environ.get(WORK, "0")) / 1e6
    while time.thread_time() < until_s:
        pass
    return PaymentTaken(**taken(order))


app = App(service, topics={"orders": os.environ.get(ORDERS, "orders"), "payments": os.environ.get(PAYMENTS, "out")})


def measure(stage: Stage) -> dict[str, Any]:
    """Each pair with 1 and with 2, with and without work."""
    events = stage.scaled(EVENTS, EVENTS // 2)
    turns = [(name, spin, count) for name, spin in stage.some(ROWS) for count in (1, 2)]
    found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
    for number in range(1, stage.few + 1):
        stage.chance.shuffle(turns)
        for turn in turns:
            name, spin, count = turn
            try:
                per_s, cpu_us = run(stage, PAIRS[name], events // (2 if spin else 1), count, spin)
            except NotMeasured as error:
                say(f"workers: {name}: not measured: {error}")
                continue
            found.setdefault(turn, []).append((per_s, cpu_us))
            say(f"workers: round {number} of {stage.few}: {name}, {count}, {spin} us: {per_s:,.0f} events/s")
    rows = []
    for name, spin in ROWS:
        row: dict[str, Any] = {"pair": name, "spin_us": spin}
        for count in (1, 2):
            if each := found.get((name, spin, count)):
                row[f"per_s_{count}"], row[f"cpu_us_{count}"] = (median(column) for column in zip(*each, strict=True))
        if "per_s_1" in row and "per_s_2" in row:
            rows.append(row | {"times": row["per_s_2"] / row["per_s_1"]})
    return {"rows": rows, "cpus": os.cpu_count()}


def run(stage: Stage, pair: tuple[str, str], events: int, count: int, spin_us: int) -> tuple[float, float]:
    """Events a second, and CPU microseconds of all processes an event.

    Workers start on a topic that seems empty: the events are in it, in a transaction, which is committed when each
    worker has its partitions.
    """
    from confluent_kafka import Consumer, Producer, TopicPartition

    from scripts.bench.orders import orders

    client, store = pair
    group = f"bench-{uuid.uuid4().hex[:8]}"
    topics = stage.topic("orders"), stage.topic("payments")
    environment = {GROUP: group, ORDERS: topics[0], PAYMENTS: topics[1], WORK: str(spin_us)}
    asyncio.run(_create_topics(stage, group, topics[0]))
    producer = Producer(
        {
            "bootstrap.servers": stage.kafka,
            "transactional.id": group,
            "transaction.timeout.ms": 120_000,
            "linger.ms": 5,
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    for record in orders(events):
        headers: Any = record.headers(sampled=False)
        producer.produce(topics[0], record.value, record.key, headers=headers)
        producer.poll(0)
    producer.flush(60)
    looking = Consumer({"bootstrap.servers": stage.kafka, "group.id": group, "enable.auto.commit": False})
    partitions = [TopicPartition(topics[0], number) for number in range(4)]

    def handled() -> int:
        return sum(max(0, each.offset) for each in looking.committed(partitions, timeout=10))

    command = [sys.executable, "-m", "choreo", "run", TARGET, "--workers", str(count), "--log-level", "warning"]
    command += ["--broker", f"{client}://{stage.kafka}", "--store", store]
    try:
        with beside(command, environment) as process:
            _wait(lambda: _settled(stage, group, topics[0], count), READY_S, f"{count} workers to have partitions")
            time.sleep(1.0)
            producer.commit_transaction(30)
            _wait(lambda: handled() > SHARE * events, RUN_S_MAX, "the first tenth")
            first, began_s, cpu_s = handled(), time.perf_counter(), _cpu_s(process.pid)
            _wait(lambda: handled() > (1 - SHARE) * events, RUN_S_MAX, "all but a tenth")
            last, took_s, used_s = handled(), time.perf_counter() - began_s, _cpu_s(process.pid) - cpu_s
    finally:
        looking.close()
        stage.drop(lambda name: name in topics or group in name)
    if last <= first:
        raise NotMeasured(f"{events} events were too few to be timed")
    return (last - first) / took_s, used_s / (last - first) * 1e6


async def _create_topics(stage: Stage, group: str, orders: str) -> None:
    from choreo.opening import open_transport
    from choreo.ports import TopicSpec
    from choreo.stores.changelog import changelog_specs

    transport = open_transport(f"kafka://{stage.kafka}")
    await transport.open()
    own = [TopicSpec(f"{group}.dlq", 4), *changelog_specs(group, {orders: TopicSpec(orders, 4)})]
    await transport.create_topics(own)
    await transport.close()


def _settled(stage: Stage, group: str, topic: str, count: int) -> bool:
    """Whether the group has so many members, and each has partitions of the topic."""
    from confluent_kafka import KafkaException

    admin = stage.admin()
    try:
        members = admin.describe_consumer_groups([group])[group].result(10).members
    except KafkaException:  # there is none yet
        return False
    having = [each for each in members if any(one.topic == topic for one in each.assignment.topic_partitions)]
    return len(having) == count


def _wait(done: Any, within_s: float, what: str) -> None:
    until_s = time.monotonic() + within_s
    while not done():
        if time.monotonic() > until_s:
            raise NotMeasured(f"waited {within_s:g} s for {what}")
        time.sleep(0.05)


def _cpu_s(pid: int) -> float:
    """CPU time of a process and of its children; Linux only, elsewhere 0."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return own + sum(_cpu_s(int(child)) for child in children)


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    text = f"""`choreo run --workers N` on 4 partitions, on {found["cpus"]} CPUs that the broker is on too;
    between the first tenth of the events and the last, which are all there at once. The handler only answers, or
    computes for {SPIN_US} us."""
    rows = [
        (
            row["pair"],
            f"{row['spin_us']} us" if row["spin_us"] else "answers",
            f"{row['per_s_1']:,.0f}",
            f"{row['per_s_2']:,.0f}",
            f"{row['times']:.2f}",
            f"{row['cpu_us_1']:.0f}",
            f"{row['cpu_us_2']:.0f}",
        )
        for row in found["rows"]
    ]
    heads = ("pair", "handler", "1: events/s", "2: events/s", "times", "1: CPU us", "2: CPU us")
    return [*prose(text), *table(heads, rows)]
