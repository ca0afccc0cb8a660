"""Dead letters replayed in the simulated world: by two operators, through every fault. `SIMULATE_SEEDS`: how many."""

import os
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence

import pytest

from choreo import App, Event, Flow, RetryPolicy, Service
from choreo.record import Record
from choreo.runtime.keying import Units
from choreo.runtime.work import Work
from choreo.testing.simulation import Faults, Simulation, World
from choreo.testing.simulation.log import Partition, Transaction

SEEDS = max(5, int(os.environ.get("SIMULATE_SEEDS", "500")) // 50)
FAULTS = Faults(handler_fails=0.3)


class Asked(Event, type="desk.asked", version=1, topic="asked", key="who"):
    who: str
    number: int


class Booked(Event, type="desk.booked", version=1, topic="booked", key="who"):
    who: str
    number: int


def app_of(*, rows: bool) -> App:
    """One attempt and no more: whatever fails is a dead letter. With rows, each effect is one without a key."""
    desk, hall = Service("desk", retry=RetryPolicy(attempts_max=1)), Service("hall")
    if rows:

        @desk.on_start
        def tables(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS booking (number INTEGER)")

        @desk.handler(Asked, name="book")
        def book_row(asked: Asked, db: sqlite3.Connection) -> Booked:
            db.execute("INSERT INTO booking VALUES (?)", (asked.number,))
            return Booked(who=asked.who, number=asked.number)
    else:

        @desk.handler(Asked)
        async def book(asked: Asked) -> Booked:
            return Booked(who=asked.who, number=asked.number)

    @hall.handler(Booked)
    async def hear(booked: Booked) -> None: ...

    return App(desk, hall, flows=[Flow("booking", starts=Asked, ends=Booked)])


def asked(chance: random.Random) -> Sequence[Event]:
    """Thirty of them, of four people."""
    return [Asked(who=f"guest {chance.randrange(4)}", number=number) for number in range(30)]


def booked_once(world: World) -> Iterator[str]:
    """Every event has its row, and one only."""
    rows = Counter(number for (number,) in world.rows("SELECT number FROM booking"))
    for number in range(30):
        if rows[number] != 1:
            yield f"{number} is booked {rows[number]} times"


def all_replayed(world: World) -> Iterator[str]:
    """Something was there to be replayed."""
    if not world.replayed():
        yield "no event was replayed"


def simulation(pair: str) -> Simulation:
    """The flow, replayed, on one of the pairs."""
    rows = pair in ("embedded", "outbox")
    checkers = (all_replayed, booked_once) if rows else (all_replayed,)
    return Simulation(app_of(rows=rows), asked, pair=pair, faults=FAULTS, checkers=checkers, replays=True)


@pytest.mark.parametrize("pair", ["embedded", "outbox", "lease", "changelog"])
def test_every_event_is_handled_in_the_end_and_no_effect_is_repeated(pair: str) -> None:
    """Each flow ends by its replay; choreo's own promises hold for replays too."""
    for seed in range(1, 1 + SEEDS):
        outcome = simulation(pair).run(seed)
        assert outcome.violations == (), f"{pair}, seed {seed}"


def test_replay_without_an_identity_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record of a replay handled for itself: two operators, or a late write, book an event twice."""
    key = Units.key

    def by_place(self: Units, work: Work) -> bytes:
        found = key(self, work)
        return found if work.replay is None else bytes(a ^ b for a, b in zip(found, _place(work), strict=True))

    monkeypatch.setattr(Units, "key", by_place)
    violations = [each for seed in range(1, 1 + SEEDS) for each in simulation("outbox").run(seed).violations]
    assert any("is booked 2 times" in each for each in violations)


def _place(work: Work) -> bytes:
    return work.record.offset.to_bytes(16, "big")


@pytest.mark.parametrize(
    ("committed", "end"), [(False, 1), (None, 2), (True, 2)], ids=["aborted", "open", "committed"]
)
def test_what_was_aborted_at_the_end_of_a_log_is_not_unread(committed: bool | None, end: int) -> None:
    """Nobody is given it; a world was taken for stuck that had nothing left to do."""
    record, partition = Record("booked", 0, 0, None, b"", (), 0), Partition()
    partition.entries = [(record, None), (record, Transaction(committed))]
    assert partition.readable_end() == end
