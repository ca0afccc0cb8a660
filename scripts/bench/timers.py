"""How late timers are sent while few and many wait, many are due and more are set.

PENDING timers wait from the start, due evenly over the next ten minutes; 200 instances a second start, each with a
timer that is due two seconds later; each timer that is sent is handled: its instance loaded and stored, the timer
taken away. Then, where many wait, 5,000 are due at the same moment. The log is a list.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

from choreo.instances import INSTANCES, Instance, Instances, Timer, TimerStore
from choreo.ports import ClaimRequest, CommitRequest, Finished, IdempotencyStore, Lease, Transacted, Transport
from choreo.record import ProducerRecord, TopicPartition
from choreo.runtime.clock import SystemClock
from choreo.runtime.timers import TimerPoller
from scripts.bench.markdown import prose, table
from scripts.bench.stage import NotMeasured, Stage, say

PROCESS, STARTS_S, DUE_S, SPREAD_S, BURST, COMMIT = "approval", 200, 2.0, 600.0, 5_000, 25
DATA = b'{"manager":"%s"}' % (b"m" * 200)
TITLE = "Timers pending"
PENDING, SECONDS, POLLERS, BURST_IN_S = (1_000, 100_000), 8, 2, 20.0
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
            into, mark, ended = f"bench_timers_{pending}.", "%s", "false"
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


async def under_load(stores: Sequence[IdempotencyStore], pending: int, seconds: int) -> dict[str, float]:
    """Fill, then let some pollers send while instances start."""
    partitions = [TopicPartition("input", number) for number in range(4)]
    leases = await stores[0].acquire("bench", partitions, "bench")
    firing, *starting = (Side(stores[0], lease) for lease in leases)
    await stores[0].renew(leases, 3_600.0)
    began_s = time.perf_counter()
    await fill(stores[0], pending)
    say(f"timers: {pending:,} wait after {time.perf_counter() - began_s:.0f} s")
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
        if pending < BURST:
            return found
        due_s = time.time() + BURST_IN_S
        for first in range(0, BURST, 500):
            await begin(starting, [start(f"b{first + at}", due_s) for at in range(500)])
        log.take()
        if time.time() > due_s:
            raise NotMeasured(f"{BURST} timers were not set within {BURST_IN_S:g} s")
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
async def opened(name: str, place: str, pending: int) -> AsyncIterator[list[IdempotencyStore]]:
    """As many processes' stores on the same file or schema."""
    async with AsyncExitStack() as stack:
        stores: list[IdempotencyStore] = []
        for _ in range(POLLERS):
            store: IdempotencyStore
            if name == "sqlite":
                from choreo.sqlite.database import Database
                from choreo.stores.sqlite import SqliteStore

                store = SqliteStore(Database(f"{place}/timers-{pending}.db"), SystemClock(), with_log=False)
            else:
                from choreo.stores.postgres import PostgresStore

                store = PostgresStore(place, schema=f"bench_timers_{pending}")
            await store.open()
            stack.push_async_callback(store.close)
            await store.apply()
            stores.append(store)
        yield stores


async def run(name: str, place: str, pending: int, seconds: int) -> dict[str, float]:
    """One store, so many timers."""
    async with opened(name, place, pending) as stores:
        return await under_load(stores, pending, seconds)


def measure(stage: Stage) -> dict[str, Any]:
    """Each store with few and with many."""
    rows: list[dict[str, Any]] = []
    for name in ("sqlite", "postgres"):
        for pending in PENDING if stage.asked.scale == 1 else PENDING[:1]:
            try:
                place = stage.postgres if name == "postgres" else str(stage.folders.mktemp("timers"))
                found = asyncio.run(run(name, place, pending, SECONDS))
            except (NotMeasured, AssertionError) as error:
                say(f"timers: {name}, {pending:,}: not measured: {error}")
                continue
            say(f"timers: {name}, {pending:,} wait: {found['late_ms_p99']:.0f} ms late (p99)")
            rows.append({"store": name, "pending": pending, **found})
    return {"rows": rows}


def lines(found: dict[str, Any]) -> list[str]:
    """The table."""
    text = f"""{STARTS_S} instances start a second, each with a timer that is due {DUE_S:g} s later, is sent and
    handled; {POLLERS} processes look for timers that are due. Then {BURST:,} are due at the same moment. How late
    they are sent:"""
    rows = []
    for row in found["rows"]:
        late = [f"{row[f'late_ms_{name}']:.0f}" for name in ("p50", "p99", "max")]
        burst = (f"{row['burst_late_ms_p99']:.0f}", f"{row['sent_twice']:.0f}") if "sent_twice" in row else ()
        rows.append((row["store"], f"{row['pending']:,}", *late, *burst))
    heads = ("store", "pending", "p50 ms", "p99 ms", "max ms", "of the burst, p99 ms", "sent twice")
    return [*prose(text), *table(heads, rows)]
