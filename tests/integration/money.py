"""Services that move money between rows of PostgreSQL, each through another kind of transaction, and their books.

`choreo run tests.integration.money:app --service NAME` runs one of them; the tables are in the schema `MONEY_SCHEMA`.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psycopg
from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from choreo import App, Event, RetryPolicy, Service
from choreo import envelope as cloudevents
from choreo.core.emission import derived_id
from choreo.envelope import Envelope
from choreo.opening import open_transport
from choreo.record import ProducerRecord, Record

ROOT = Path(__file__).parents[2]
SCHEMA = os.environ.get("MONEY_SCHEMA", "public")
SOURCE = "/bank"
ACCOUNTS = 500
CENTS = 1_000
"""On each account in the beginning."""
AGAIN_SHARE = 0.3
QUICK_SESSIONS = {"CHOREO_KAFKA_SESSION_TIMEOUT_MS": "6000"}


class Transfer(Event):
    """What all of them say."""

    number: int
    debit: int
    credit: int
    cents: int


class TransferOrdered(Transfer, type="money.ordered", version=1, topic="ordered", key="debit"):
    """The input. Orders of several debit accounts, each a lane, may credit the same one."""


class TransferBooked(Transfer, type="money.booked", version=1, topic="told", key="debit"):
    """The money was moved."""


class TransferRefused(Transfer, type="money.refused", version=1, topic="told", key="debit"):
    """There was too little of it."""


LOCK = "SELECT number, cents FROM {0}_account WHERE number IN (:debit, :credit) ORDER BY number FOR UPDATE"
MOVE = """UPDATE {0}_account SET cents = cents + CASE number WHEN :debit THEN -:cents ELSE :cents END
    WHERE number IN (:debit, :credit)"""
NOTE = "INSERT INTO {0}_ledger VALUES (:number, :debit, :credit, :cents, :booked)"
# The ledger has no key, so that what is booked twice is there twice.
TABLES = """CREATE TABLE IF NOT EXISTS {0}_account (number integer PRIMARY KEY, cents integer NOT NULL);
    INSERT INTO {0}_account SELECT n, {1} FROM generate_series(0, {2} - 1) AS n ON CONFLICT DO NOTHING;
    CREATE TABLE IF NOT EXISTS {0}_ledger
        (number integer, debit integer, credit integer, cents integer, booked boolean)"""


class Statements:
    """A service's SQL, as psycopg and as SQLAlchemy have it."""

    def __init__(self, service: str) -> None:
        self._place = f"{SCHEMA}.{service}"

    def sqlalchemy(self, statement: str) -> TextClause:
        """With parameters as `:name`."""
        return text(statement.format(self._place))

    def psycopg(self, statement: str) -> str:
        """With parameters as `%(name)s`."""
        found = statement.format(self._place)
        for name in ("number", "debit", "credit", "cents", "booked"):
            found = found.replace(f":{name}", f"%({name})s")
        return found

    def tables(self) -> str:
        """What makes the accounts, with money on them, and the ledger."""
        return TABLES.format(self._place, CENTS, ACCOUNTS)


def judged(order: TransferOrdered, found: Sequence[Any]) -> tuple[dict[str, Any], TransferBooked | TransferRefused]:
    """Whether the money is there: parameters of the statements that follow, and what to tell."""
    enough = dict(tuple(row) for row in found)[order.debit] >= order.cents
    told = (TransferBooked if enough else TransferRefused)(**order.model_dump())
    return {**order.model_dump(), "booked": enough}, told


def service(name: str) -> tuple[Service, Statements]:
    """A service with its tables, which has no handler yet."""
    # A deadlock is a failed attempt, and there may be many: none of them is the order's fault.
    retry = RetryPolicy(attempts_max=50, base_s=0.05, cap_s=1.0)
    group = os.environ.get("CHOREO_TOPIC_PREFIX", "") + name  # another run's members are none of ours
    made, statements = Service(name, group=group, retry=retry), Statements(name)
    made.on_start(lambda db: db.execute(statements.tables()))
    return made, statements


driver, in_driver = service("driver")
later, in_later = service("later")
plain, in_plain = service("plain")


@driver.handler(TransferOrdered)
async def transfer(order: TransferOrdered, db: psycopg.AsyncConnection[Any]) -> TransferBooked | TransferRefused:
    """On the driver's connection."""
    cursor = await db.execute(in_driver.psycopg(LOCK), order.model_dump())
    values, told = judged(order, await cursor.fetchall())
    if values["booked"]:
        await db.execute(in_driver.psycopg(MOVE), values)
    await db.execute(in_driver.psycopg(NOTE), values)
    return told


@later.handler(TransferOrdered, name="transfer")
async def transfer_later(order: TransferOrdered, session: AsyncSession) -> TransferBooked | TransferRefused:
    """In an SQLAlchemy session."""
    values, told = judged(order, (await session.execute(in_later.sqlalchemy(LOCK), order.model_dump())).all())
    if values["booked"]:
        await session.execute(in_later.sqlalchemy(MOVE), values)
    await session.execute(in_later.sqlalchemy(NOTE), values)
    await session.commit()  # of its savepoint: durable only with the key
    return told


@plain.handler(TransferOrdered, name="transfer")
def transfer_plain(order: TransferOrdered, session: Session) -> TransferBooked | TransferRefused:
    """In an SQLAlchemy session of a plain function, on a thread."""
    values, told = judged(order, session.execute(in_plain.sqlalchemy(LOCK), order.model_dump()).all())
    if values["booked"]:
        session.execute(in_plain.sqlalchemy(MOVE), values)
    session.execute(in_plain.sqlalchemy(NOTE), values)
    return told


app = App(driver, later, plain, name="money")


# ---- the bank, from the side of the test


def orders(prefix: str, count: int, chance: random.Random) -> list[ProducerRecord]:
    """Transfers, three of ten twice: the second time somewhere behind the first, in any distance."""
    placed: list[tuple[float, ProducerRecord]] = []
    for number in range(count):
        debit, credit = chance.sample(range(ACCOUNTS), 2)
        order = TransferOrdered(number=number, debit=debit, credit=credit, cents=chance.randint(1, CENTS // 2))
        headers = cloudevents.write(Envelope(f"transfer-{number}", SOURCE, order.event_type, version=1))
        record = ProducerRecord(f"{prefix}ordered", order.record_key(), order.payload(), headers)
        placed.append((number, record))
        if chance.random() < AGAIN_SHARE:
            placed.append((number + chance.choice((0.5, chance.uniform(1, 200), chance.uniform(1, count))), record))
    return [record for _, record in sorted(placed, key=lambda each: each[0])]


class Teller:
    """One service as a process, killed and started again."""

    def __init__(self, service: str, folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = folder / f"{service}.log"
        self._command = [sys.executable, "-m", "choreo", "run", "tests.integration.money:app"]
        self._command += ["--service", service, *arguments]
        self._environment = {**os.environ, **QUICK_SESSIONS, **environment, "PYTHONPATH": str(ROOT)}
        self._process: subprocess.Popen[bytes] | None = None
        self._begun = 0

    def start(self) -> None:
        """Start it; its log goes on where it was."""
        with open(self._log, "ab") as said:
            self._begun = said.tell()
            self._process = subprocess.Popen(self._command, env=self._environment, cwd=ROOT, stdout=said, stderr=said)

    def kill(self) -> None:
        """End it as a crash would. It must have been alive until then."""
        assert self._process is not None
        assert self._process.poll() is None, f"ended by itself:\n{self.log()[-4000:]}"
        self._process.kill()
        assert self._process.wait(10) == -signal.SIGKILL

    def drain(self) -> int:
        """Tell it to stop; its exit code."""
        assert self._process is not None
        until_s = time.monotonic() + 30
        while (
            "choreo.run: running" not in self.log()[self._begun :]
        ):  # until then SIGTERM ends it as it does any process
            assert time.monotonic() < until_s, self.log()[-4000:]
            time.sleep(0.05)
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(40)

    def end(self) -> None:
        """Leave no process behind."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)

    def log(self) -> str:
        """What it said, in all of its lives."""
        return self._log.read_text(errors="replace")


@dataclass
class Books:
    """What a service's tables and topic say, against what was ordered.

    Attributes:
        missing, twice: Transfers with no line in the ledger, lines beyond the first.
        off: Cents by which the accounts together have changed; `accounts_off` do not agree with the ledger.
        untold, two_ids, untrue: Transfers nobody was told of, told under several ids or a wrong one, told otherwise
            than the ledger has them.
        resent: Records on the log beyond the first of an id.
    """

    missing: int
    twice: int
    off: int
    accounts_off: int
    untold: int
    two_ids: int
    untrue: int
    resent: int

    @property
    def wrong(self) -> dict[str, int]:
        """What may not be; a resend may."""
        return {name: value for name, value in vars(self).items() if value and name != "resent"}


def audit(place: str, service: str, count: int, connection: psycopg.Connection[Any], told: Sequence[Record]) -> Books:
    """Look at everything there is; `place` is what the names of the service's tables begin with."""
    accounts = dict(connection.execute(f"SELECT number, cents FROM {place}_account").fetchall())
    ledger = connection.execute(f"SELECT * FROM {place}_ledger").fetchall()
    expected = dict.fromkeys(range(ACCOUNTS), CENTS)
    for _, debit, credit, cents, booked in ledger:
        expected[debit] -= cents * booked
        expected[credit] += cents * booked
    lines = Counter(line[0] for line in ledger)
    outcome = {line[0]: "money.booked" if line[4] else "money.refused" for line in ledger}
    ids: dict[int, set[tuple[str, str]]] = {number: set() for number in range(count)}
    for record in told:
        headers = {name: (value or b"").decode() for name, value in record.headers}
        ids[orjson.loads(record.value or b"")["number"]].add((headers["ce_id"], headers["ce_type"]))
    return Books(
        missing=count - len(lines),
        twice=len(ledger) - len(lines),
        off=sum(accounts.values()) - ACCOUNTS * CENTS,
        accounts_off=sum(accounts[number] != cents for number, cents in expected.items()),
        untold=sum(not each for each in ids.values()),
        two_ids=sum(len(each) > 1 for each in ids.values()),
        untrue=sum(
            bool(each) and (told_id(service, number, outcome.get(number, "")), outcome.get(number, "")) not in each
            for number, each in ids.items()
        ),
        resent=len(told) - len(set().union(*ids.values())),
    )


def told_id(service: str, number: int, type_: str) -> str:
    """The one id under which a transfer's outcome may be told."""
    return derived_id(service, "transfer", SOURCE, f"transfer-{number}", type_, 0)


async def told_by(broker: str, topic: str) -> list[Record]:
    """What is on the topic."""
    transport = open_transport(broker)
    await transport.open()
    try:
        return list(await transport.scan([topic], since_ms=0))
    finally:
        await transport.close()
