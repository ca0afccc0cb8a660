"""Overdue flows on bad days, and with a crash at each commit: told once if they never end, never if they do."""

import random
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from choreo import App, Event, Flow, Service
from choreo.core import process as core
from choreo.process import FlowOverdue, overdue
from choreo.testing.simulation import Faults, Simulation, World
from choreo.testing.simulation.crashes import single
from tests.simulation.mutants.processes import timers_are_noted_first

GUESTS = 8
LONG = timedelta(seconds=150)
"""Longer than anything lasts that goes wrong here: what is poured at all is poured in time."""
SHORT = timedelta(seconds=6)
"""Timers are due while things go wrong, and some who are served are late, too."""
CRASHES = {"outbox": 30, "embedded": 10}


class Asked(Event, type="tea.asked", version=1, topic="asked", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", version=1, topic="poured", key="who"):
    """They have it."""

    who: str


class TeaLate(Event, type="tea.late", version=1, topic="late", key="who"):
    """They wait."""

    who: str


def tea(deadline: timedelta) -> App:
    """One guest in three never gets any; whoever waits is sent an apology, which is written down."""
    kitchen, host = Service("kitchen"), Service("host")
    flow = Flow("tea", starts=Asked, ends=Poured, deadline=deadline)

    @kitchen.handler(Asked)
    def pour(asked: Asked) -> Poured | None:
        return None if _forgotten(asked.who) else Poured(who=asked.who)

    @overdue(flow)
    def tea_late(late: FlowOverdue) -> TeaLate:
        assert late.deadline_s == deadline.total_seconds()
        return TeaLate(who=late.key)

    @host.on_start
    def tables(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS apology (who TEXT)")

    @host.handler(TeaLate)
    def apologise(late: TeaLate, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO apology VALUES (?)", (late.who,))

    return App(kitchen, tea_late, host)


def guests(chance: random.Random) -> Sequence[Event]:
    """Eight."""
    return [Asked(who=f"guest {number}") for number in range(GUESTS)]


def told_once_if_late(world: World) -> Iterator[str]:
    """Whoever is forgotten; whoever is served at most once, and never with the longer deadline. Nobody too early."""
    watch = world.app.processes["tea-late"].newest.definition
    deadline_s = sum(timer.delay_s for name in ("running", "nearly-due") for timer in watch.state(name).timers)
    told = Counter(who for (who,) in world.rows("SELECT who FROM apology", service="host"))
    for number in range(GUESTS):
        who = f"guest {number}"
        allowed = (1,) if _forgotten(who) else (0,) if deadline_s == LONG.total_seconds() else (0, 1)
        if told[who] not in allowed:
            yield f"{who} was told {told[who]} times"
    asked_ms: dict[bytes | None, int] = {}
    for record, envelope in world.events():
        kind = (envelope.source, envelope.type) if envelope is not None else ("", "")
        if kind == ("/simulation", Asked.event_type):
            asked_ms.setdefault(record.key, record.timestamp_ms)
        elif kind == ("/tea-late", TeaLate.event_type):
            if record.timestamp_ms - asked_ms[record.key] < deadline_s * 1000:
                yield f"{record.key!r} was told too early"


def _forgotten(who: str) -> bool:
    return int(who.removeprefix("guest ")) % 3 == 0


def simulation(pair: str, deadline: timedelta = LONG, faults: Faults | None = None, members: int = 2) -> Simulation:
    """On a pair that carries timers."""
    app, checkers = tea(deadline), [told_once_if_late]
    return Simulation(app, guests, pair=pair, faults=faults or Faults(), members=members, checkers=checkers)


@pytest.mark.parametrize("deadline", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize(("pair", "seeds"), [("outbox", 8), ("embedded", 1)])
def test_who_is_late_is_told_once_and_nobody_else(pair: str, seeds: int, deadline: timedelta) -> None:
    """With all faults."""
    for seed in range(1, seeds + 1):
        assert simulation(pair, deadline).run(seed).violations == (), seed


@pytest.mark.parametrize("pair", CRASHES)
def test_no_crash_loses_or_doubles_what_is_told(pair: str) -> None:
    """Before and after some of the writes of all processes, evenly chosen; the watch's among them."""
    found = single(simulation(pair, SHORT, Faults.none(), members=1), reads=False, runs_max=CRASHES[pair])
    assert [each.violations for each in found.failing] == []
    assert found.again > 0 or pair == "embedded", "the crashes were felt"
    assert any("tea-late" in id_ for each in found.trials for id_ in each.schedule)


def test_an_end_that_is_not_noticed_makes_a_flow_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a good day: it is the end alone that keeps the watch silent."""
    monkeypatch.setattr(core, "on_event", _deaf_to_ends)
    assert any("told 1 times" in each for each in simulation("outbox", faults=Faults.none()).run(1).violations)


def test_a_timer_that_is_noted_before_it_is_sent_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is never told."""
    timers_are_noted_first(monkeypatch)
    runs = (simulation("outbox", SHORT).run(seed) for seed in range(1, 30))
    assert any("told 0 times" in each for run in runs for each in run.violations)


_real = core.on_event


def _deaf_to_ends(*arguments: object) -> Iterator[core.Step]:
    if arguments[2] == Poured.event_type:
        return iter((core.Passed("ignored"),))
    return _real(*arguments)  # type: ignore[arg-type]
