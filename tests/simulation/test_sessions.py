"""Handlers with SQLAlchemy sessions in a simulation: rows, key and emits together, whatever goes wrong in between."""

import asyncio
import random
from collections.abc import Iterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from choreo import App, Event, Flow, Service
from choreo.testing.simulation import Faults, Simulation, World
from choreo.testing.simulation.database import OpenTransaction

SEEDS = 12


class Paid(Event, type="bank.paid", version=1, topic="paid", key="account"):
    """Money came in."""

    account: str
    number: int


class Booked(Event, type="bank.booked", version=1, topic="booked", key="account"):
    """It is on the account, which now holds `total`."""

    account: str
    number: int
    total: int


class Reported(Event, type="bank.reported", version=1, topic="reported", key="account"):
    """It is in the report."""

    account: str
    number: int


class Base(DeclarativeBase):
    """The bank's tables."""


class Booking(Base):
    """One payment on an account."""

    __tablename__ = "booking"
    id: Mapped[int] = mapped_column(primary_key=True)
    account: Mapped[str]
    number: Mapped[int]


class Line(Base):
    """One line of the report; a second one of the same payment can be written, and seen."""

    __tablename__ = "line"
    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int]
    total: Mapped[int]


def bank(patience_s: float = 0.2) -> App:
    """Books with an AsyncSession, which it holds over a wait; reports with a plain one."""
    ledger, report = Service("ledger"), Service("report")

    @ledger.handler(Paid)
    async def book(paid: Paid, db: AsyncSession) -> Booked:
        db.add(Booking(account=paid.account, number=paid.number))
        await db.flush()
        await asyncio.sleep(patience_s)
        query = select(func.count()).select_from(Booking).where(Booking.account == paid.account)
        return Booked(**paid.model_dump(), total=(await db.execute(query)).scalar_one())

    @report.handler(Booked)
    def write(booked: Booked, db: Session) -> Reported:
        db.add(Line(number=booked.number, total=booked.total))
        return Reported(account=booked.account, number=booked.number)

    return App(ledger, report, flows=[Flow("payment", starts=Paid, ends=Reported)])


def payments(chance: random.Random) -> list[Paid]:
    """Twenty, on three accounts."""
    return [Paid(account=f"a{chance.randrange(3)}", number=number) for number in range(20)]


def booked_once(world: World) -> Iterator[str]:
    """Every payment is booked and reported once, and no account was ever miscounted."""
    for table in ("booking", "line"):
        numbers = sorted(row[0] for row in world.rows(f"SELECT number FROM {table}"))
        if numbers != list(range(20)):
            yield f"{table} has {numbers}"
    for account in ("a0", "a1", "a2"):
        theirs = {each.number for each in world.published.values() if each.account == account}
        totals = sorted(total for number, total in world.rows("SELECT number, total FROM line") if number in theirs)
        if totals != list(range(1, len(theirs) + 1)):
            yield f"{account} was at {totals}"


def simulation() -> Simulation:
    """The bank on bad days."""
    faults = Faults(handler_fails=0.01, crash=0.01, crash_after=0.01)
    return Simulation(bank(), payments, checkers=[booked_once], metadata=Base.metadata, faults=faults)


def test_rows_by_sessions_are_committed_once_on_bad_days() -> None:
    """With all faults: lost answers, crashes inside the transaction, moved partitions, several processes at once."""
    inside = 0
    for seed in range(1, SEEDS + 1):
        outcome = simulation().run(seed)
        assert outcome.violations == (), seed
        inside += sum(each.startswith(("crash@handler/", "crash_after@handler/")) for each in outcome.faults)
    assert inside > 0


def test_a_transaction_whose_process_dies_is_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while the handler waits, its row flushed: with the rollback taken out the row is there twice."""
    crash = "crash_after@handler/ledger.book/a1#1"
    assert simulation().run(3, allowed=[crash]).faults == (crash,)
    assert simulation().run(3, allowed=[crash]).violations == ()
    end = OpenTransaction.end
    monkeypatch.setattr(OpenTransaction, "end", lambda self, _: end(self, "COMMIT") if self.is_open else None)
    assert any("booking has" in each for each in simulation().run(3, allowed=[crash]).violations)


def test_a_transaction_whose_process_stands_still_is_ended_by_the_server() -> None:
    """Another process books what it had begun; when it goes on its connection is closed."""
    outcome = Simulation(
        bank(patience_s=5.0),
        lambda chance: payments(chance)[:20],
        checkers=[booked_once],
        metadata=Base.metadata,
        faults=Faults.only("pause", chance=0.05),
    ).run(1)
    assert outcome.violations == ()
    assert outcome.counts["pause"] > 3


def test_an_error_rolls_back_to_the_handlers_own_savepoint() -> None:
    """What a handler did before it raised is undone, and what it did in a savepoint that failed; the rest commits."""
    shop = Service("shop")

    @shop.handler(Paid)
    async def keep(paid: Paid, db: AsyncSession) -> None:
        db.add(Booking(id=1000 + paid.number, account="kept", number=paid.number))
        await db.flush()
        try:
            async with db.begin_nested():
                db.add(Booking(id=1000 + paid.number, account="twice", number=paid.number))
        except IntegrityError:
            db.add(Booking(id=2000 + paid.number, account="caught", number=paid.number))
        if paid.number == 3:
            raise ValueError("three is refused, five times")

    found: list[list[tuple[object, ...]]] = []
    outcome = Simulation(
        App(shop),
        payments,
        checkers=[lambda world: found.append(world.rows("SELECT account, number FROM booking"))],
        metadata=Base.metadata,
        faults=Faults.none(),
    ).run(1)
    assert outcome.violations == ()
    numbers = [number for number in range(20) if number != 3]
    assert sorted(found[0]) == [(what, number) for what in ("caught", "kept") for number in numbers]


def test_the_same_seed_with_sessions_is_the_same_history() -> None:
    """Greenlets and pools included."""
    assert simulation().run(5).text == simulation().run(5).text
