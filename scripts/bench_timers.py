"""How late timers are sent while many wait, many are due and more are set.

    python scripts/bench_timers.py [--stores sqlite,postgres] [--pending 100000] [--seconds 30] [--pollers 2] [--json]

PENDING timers wait from the start, due evenly over the next ten minutes; 200 instances a second start, each with a
timer that is due two seconds later; each timer that is sent is handled: its instance loaded and stored, the timer
taken away. Then 5,000 are due at the same moment. PostgreSQL is real, and found or started as the tests find it; the
log is a list. Exit 1 if the 99th percentile is above a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from choreo.instances import INSTANCES, Instance, Instances, Timer, TimerStore  # noqa: E402
from choreo.ports import ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease, Transacted, Transport  # noqa: E402
from choreo.record import ProducerRecord, TopicPartition  # noqa: E402
from choreo.runtime.clock import SystemClock  # noqa: E402
from choreo.runtime.timers import TimerPoller  # noqa: E402
from scripts.bench_stores import Folders, say  # noqa: E402

PROCESS, STARTS_S, DUE_S, SPREAD_S, BURST, COMMIT = "approval", 200, 2.0, 600.0, 5_000, 25
DATA = b'{"manager":"%s"}' % (b"m" * 200)
LATE_S_MAX = 1.0
Change = Callable[[Instances], None]


class Side:
    """One partition's worth of a service: events handled one commit after the other."""

    def __init__(self, store: IdempotencyStore, lease: Lease) -> None:
        self._store = store
        self._lease = lease

    async def handle(self, changes: Sequence[Change]) -> None:
        """One event each, some in a commit."""
        for first in range(0, len(changes), COMMIT):
            await self._handle([self._unit(change) for change in changes[first : first + COMMIT]])

    async def _handle(self, units: list[Transacted]) -> None:
        lease = self._lease
        asked = [
            ClaimRequest(lease.partition, unit.digest, b"12345678", "s.h", 0, "flow", int(time.time() * 1000))
            for unit in units
        ]
        await self._store.claim([lease], asked)
        while units:
            result = await self._store.commit(CommitRequest({lease.partition: lease}, (), {}, units))
            raised = [each for each in result.transacted if isinstance(each, BaseException)]
            assert not raised, raised
            assert not result.refused
            units = [unit for unit, each in zip(units, result.transacted, strict=True) if each is None]

    def _unit(self, change: Change) -> Transacted:
        digest, lease = os.urandom(16), self._lease

        def invoke(instances: Instances, _: Any) -> Finished:
            change(instances)
            return Finished(lease.partition, 0, digest, (), "handled")

        return Transacted(lease.partition, digest, digest, INSTANCES, False, invoke)


class Log:
    """Where pollers send to: how late each timer came, and what is to be handled."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self.fired: asyncio.Queue[tuple[str, str]] = asyncio.Queue()
        self.again = 0
        self._seen: set[bytes | None] = set()

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """As `Transport.send`."""
        now_s = time.time()
        for record in records:
            key, name, due_ms = (record.value or b"").decode().split("|")
            self.again += record.key in self._seen
            self._seen.add(record.key)
            self.late_s.append(now_s - int(due_ms) / 1000)
            self.fired.put_nowait((key, name))

    def take(self) -> list[float]:
        """The lateness so far, in ascending order; begin anew."""
        taken, self.late_s = sorted(self.late_s), []
        return taken


def record(timer: Timer) -> ProducerRecord:
    """What wakes an instance."""
    value = f"{timer.key}|{timer.name}|{timer.due_ms}".encode()
    return ProducerRecord("timers", f"{timer.key}/{timer.token}".encode(), value, ())


def start(key: str, due_s: float) -> Change:
    """An instance begins, with a timer that is due at this time, or so many seconds later if it is a small number."""

    def change(instances: Instances) -> None:
        instances.load(PROCESS, key)
        instances.save(Instance(PROCESS, key, 1, "waiting", DATA))
        due_ms = int(due_s * 1000) + (instances.now_ms if due_s < 1e6 else 0)
        instances.set_timer(Timer(PROCESS, key, "remind", os.urandom(8).hex(), due_ms))

    return change


def fire(key: str, name: str) -> Change:
    """Its timer is handled."""

    def change(instances: Instances) -> None:
        found = instances.load(PROCESS, key)
        assert found is not None
        instances.save(found._replace(state="done", ended=True))
        instances.cancel_timers(PROCESS, key, [name])

    return change


async def fill(store: IdempotencyStore, pending: int) -> None:
    """Instances that wait."""
    first_ms = int((time.time() + pending / 5_000) * 1000)  # when about this is done
    instances = [(PROCESS, f"w{number}", 1, "waiting", DATA, b"[]", 1, "") for number in range(pending)]
    dues_ms = [first_ms + int(SPREAD_S * 1000 * number / pending) for number in range(pending)]
    timers = [(PROCESS, f"w{at}", "remind", "t", 1, "", "", due_ms, due_ms) for at, due_ms in enumerate(dues_ms)]
    columns = "process, key, version, state, data, deferred, revision, correlation_id, updated_ms, ended"
    timer_columns = "process, key, name, token, number, correlation_id, traceparent, due_ms, wake_ms"

    def insert(db: Any) -> None:
        if store.name == "sqlite":
            into, mark, encoded, ended = "choreo_", "?", lambda rows: rows, 0
            cursor = db
        else:
            into, mark, ended = "bench_timers.", "%s", "false"
            cursor = db.cursor()

            def encoded(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
                return [tuple(each.encode() if isinstance(each, str) else each for each in row) for row in rows]

        marks = ", ".join([mark] * 8)
        cursor.executemany(f"INSERT INTO {into}instance ({columns}) VALUES ({marks}, 0, {ended})", encoded(instances))
        cursor.executemany(f"INSERT INTO {into}timer ({timer_columns}) VALUES ({marks}, {mark})", encoded(timers))

    await store.run(insert)


async def begin(sides: Sequence[Side], changes: Sequence[Change]) -> None:
    """As many at once as there are sides."""
    await asyncio.gather(*(side.handle(changes[at :: len(sides)]) for at, side in enumerate(sides)))


async def handle_fired(side: Side, log: Log) -> None:
    """As a service does, until cancelled."""
    while True:
        fired = [await log.fired.get()]
        while not log.fired.empty() and len(fired) < 100:
            fired.append(log.fired.get_nowait())
        await side.handle([fire(*each) for each in dict.fromkeys(fired)])


async def measure(stores: Sequence[IdempotencyStore], pending: int, seconds: int) -> dict[str, float]:
    """Fill, then let some pollers send while instances start."""
    partitions = [TopicPartition("input", number) for number in range(4)]
    leases = await stores[0].acquire("bench", partitions, "bench")
    firing, *starting = (Side(stores[0], lease) for lease in leases)
    await stores[0].renew(leases, 3_600.0)
    began_s = time.perf_counter()
    await fill(stores[0], pending)
    say(f"filled with {pending} in {time.perf_counter() - began_s:.0f} s")
    log, clock = Log(), SystemClock()
    pollers = [
        TimerPoller("bench", [PROCESS], cast(TimerStore, store), cast(Transport, log), clock, record)
        for store in stores
    ]
    tasks = [asyncio.create_task(poller.run()) for poller in pollers]
    tasks.append(asyncio.create_task(handle_fired(firing, log)))
    try:
        await asyncio.sleep(3.0)  # what came due while it was filled
        log.take()
        began_s, started = time.perf_counter(), 0
        while (now_s := time.perf_counter() - began_s) < seconds:
            wanted = int(now_s * STARTS_S)
            await begin(starting, [start(f"s{number}", DUE_S) for number in range(started, wanted)])
            started = wanted
            await asyncio.sleep(0.05)
        late_s = log.take()
        found = {"started_a_second": started / seconds, "sent_a_second": len(late_s) / seconds}
        found |= {f"late_ms_p{share}": 1000 * late_s[len(late_s) * share // 100] for share in (50, 99)}
        found["late_ms_max"] = 1000 * late_s[-1]
        due_s = time.time() + 40.0
        for first in range(0, BURST, 500):
            await begin(starting, [start(f"b{first + at}", due_s) for at in range(500)])
        log.take()
        assert time.time() < due_s, "too slow to have them wait"
        await asyncio.sleep(due_s - time.time() + 5.0)
        late_s = log.take()
        assert len(late_s) >= BURST, len(late_s)
        found |= {"burst_late_ms_p99": 1000 * late_s[len(late_s) * 99 // 100], "sent_twice": log.again}
        return found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def opened(name: str, place: str, count: int) -> AsyncIterator[list[IdempotencyStore]]:
    """As many processes' stores on the same file or schema."""
    async with AsyncExitStack() as stack:
        stores: list[IdempotencyStore] = []
        for _ in range(count):
            store: IdempotencyStore
            if name == "sqlite":
                from choreo.sqlite.database import Database
                from choreo.stores.sqlite import SqliteStore

                store = SqliteStore(Database(f"{place}/timers.db"), SystemClock(), with_log=False)
            else:
                from choreo.stores.postgres import PostgresStore

                store = PostgresStore(place, schema="bench_timers")
            await store.open()
            stack.push_async_callback(store.close)
            await store.apply()
            stores.append(store)
        yield stores


async def run(name: str, place: str, asked: argparse.Namespace) -> dict[str, float]:
    """One store."""
    async with opened(name, place, asked.pollers) as stores:
        return await measure(stores, asked.pending, asked.seconds)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="sqlite,postgres", help="some of them, with commas between")
    parser.add_argument("--pending", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--pollers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="choreo-bench-")))
        folder.chmod(0o755)
        for name in asked.stores.split(","):
            place = str(folder)
            if name == "postgres":
                from tests.postgres_server import postgres_url

                place = stack.enter_context(contextmanager(postgres_url)(cast(Any, Folders(folder))))
            say(f"{name}: begins")
            results[name] = asyncio.run(run(name, place, asked))
    if asked.json:
        print(json.dumps(results, indent=2))
    else:
        for name, row in results.items():
            print(f"{name}: " + ", ".join(f"{key.replace('_', ' ')} {value:.1f}" for key, value in row.items()))
    return 1 if any(row["late_ms_p99"] > 1000 * LATE_S_MAX for row in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
