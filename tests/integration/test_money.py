"""Money moved between rows of PostgreSQL while the process that moves it is killed again and again.

`MONEY_EVENTS` transfers (600 unless given), three of ten ordered twice, and `MONEY_KILLS` kills (3).
"""

import asyncio
import os
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from choreo.opening import open_store, open_transport
from choreo.ports import TopicSpec
from choreo.runtime.clock import SystemClock
from tests.integration.money import ACCOUNTS, CENTS, Books, Teller, audit, orders, told_by

EVENTS = int(os.environ.get("MONEY_EVENTS", "600"))
KILLS = int(os.environ.get("MONEY_KILLS", "3"))
PARTITIONS = 6
STALL_S = 60.0
"""Longer than a killed member holds up its successor, and than a deadlock on a busy machine."""
DEADLOCK = re.compile(r"failed, attempt \d+: .*deadlock", re.IGNORECASE)


class Bank:
    """One service on topics and tables of its own."""

    def __init__(self, service: str, servers: str, postgres: str, folder: Path, seed: int) -> None:
        self.service = service
        self.seed = seed
        self.killed_at_work = 0
        run = os.urandom(4).hex()  # not of the seed: the topics of an earlier run may be there still
        self.schema, self.prefix = f"choreo_money_{run}", f"money-{run}-"
        self._postgres = postgres
        self._broker = f"kafka://{servers}"
        self._store = f"{postgres}?choreo_schema={self.schema}"
        self._chance = random.Random(seed)
        environment = {"MONEY_SCHEMA": self.schema, "CHOREO_TOPIC_PREFIX": self.prefix}
        self.teller = Teller(service, folder, ["--broker", self._broker, "--store", self._store], environment)

    @asynccontextmanager
    async def open(self, count: int) -> AsyncIterator["Bank"]:
        """Topics, tables, and all the orders; then the process."""
        transport = open_transport(self._broker)
        await transport.open()
        names = ("ordered", "told", f"{self.service}.dlq")
        await transport.create_topics([TopicSpec(self.prefix + name, PARTITIONS) for name in names])
        placed = orders(self.prefix, count, self._chance)
        await transport.send(placed)
        await transport.close()
        print(f"{self.service}, seed {self.seed}: {count} transfers, {len(placed) - count} of them ordered twice")
        store = open_store(self._store, self.service, "", None, clock=SystemClock())
        await store.open()
        await store.apply()
        await store.close()
        with psycopg.connect(self._postgres, autocommit=True) as self.connection:
            self.teller.start()
            try:
                yield self
            finally:
                self.teller.end()
                self.connection.execute(f"DROP SCHEMA {self.schema} CASCADE")

    def done(self) -> int:
        """Transfers in the ledger, while others go on."""
        try:
            row = self.connection.execute(
                f"SELECT count(DISTINCT number) FROM {self.schema}.{self.service}_ledger"
            ).fetchone()
        except psycopg.errors.UndefinedTable:
            return 0
        assert row is not None
        return int(row[0])

    async def reach(self, wanted: int) -> None:
        """Return when the ledger has so many lines; however long it takes, as long as it grows."""
        at, moved_s = self.done(), time.monotonic()
        while at < wanted:
            assert time.monotonic() < moved_s + STALL_S, f"{at} of {wanted} booked\n{self.teller.log()[-4000:]}"
            await asyncio.sleep(0.05)
            before, at = at, self.done()
            moved_s = time.monotonic() if at > before else moved_s

    async def kill(self, times: int, count: int) -> None:
        """Kill the process while it is at work, at places spread at random over the first nine tenths of it."""
        for wanted in sorted(self._chance.sample(range(1, count * 9 // 10), times)):
            await self.reach(max(wanted, self.done() + 1))
            await asyncio.sleep(self._chance.uniform(0.0, 0.1))
            self.killed_at_work += self.done() < count
            self.teller.kill()
            self.teller.start()

    async def books(self, count: int) -> Books:
        """What is there, once every transfer is booked and the process has drained."""
        await self.reach(count)
        assert self.teller.drain() == 0, self.teller.log()[-4000:]
        assert await told_by(self._broker, f"{self.prefix}{self.service}.dlq") == []
        told = await told_by(self._broker, f"{self.prefix}told")
        return audit(f"{self.schema}.{self.service}", self.service, count, self.connection, told)


async def moved(bank: Bank, *, events: int, kills: int) -> None:
    """Have it all moved, with as many kills, and look at the books."""
    async with bank.open(events):
        begun_s = time.monotonic()
        await bank.kill(kills, events)
        books = await bank.books(events)
        took_s = time.monotonic() - begun_s
        deadlocks = len(DEADLOCK.findall(bank.teller.log()))
        print(f"{took_s:.1f} s with {kills} kills, {events / took_s:.0f} transfers a second, {deadlocks} deadlocks")
        print(books)
        assert books.wrong == {}, f"of {ACCOUNTS} accounts with {CENTS} cents each"
        assert bank.killed_at_work == kills


@pytest.mark.slow
async def test_money_is_conserved_when_the_process_is_killed(kafka: str, postgres: str, tmp_path: Path) -> None:
    """On the driver's connection: the sum stands, each transfer is there once, and is told of under one id."""
    bank = Bank("driver", kafka, postgres, tmp_path, random.randrange(1_000_000))
    await moved(bank, events=EVENTS, kills=KILLS)


@pytest.mark.slow
@pytest.mark.parametrize("service", ["later", "plain"])
async def test_money_is_conserved_through_sessions(service: str, kafka: str, postgres: str, tmp_path: Path) -> None:
    """The same in SQLAlchemy's sessions, async and plain."""
    bank = Bank(service, kafka, postgres, tmp_path, random.randrange(1_000_000))
    await moved(bank, events=200, kills=1)
