"""A watch driven through every order of events: told at the deadline, once, or never; and refused if it is wrong."""

from datetime import UTC, datetime, timedelta

import pytest

from choreo import App, Context, DeclarationError, Event, Flow, Service
from choreo.core.definition import CORRELATION, problems
from choreo.errors import ConfigurationError
from choreo.flow.consistency import consistency
from choreo.flow.statechart import state_diagram
from choreo.process import FlowOverdue, Watch, overdue
from choreo.running import check_pair
from choreo.stores.redis import RedisStore
from choreo.testing import TestApp
from tests.unit.process_stage import Driven

DEADLINE = timedelta(hours=1)


class Asked(Event, type="tea.asked", version=1, topic="asked", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", version=1, topic="poured", key="who"):
    """They have it."""

    who: str


class Refused(Event, type="tea.refused", version=1, topic="refused"):
    """They do not get any."""


class TeaLate(Event, type="tea.late", version=1, topic="late", key="who"):
    """They wait."""

    who: str
    since: datetime


tea = Flow("tea", starts=Asked, ends=(Poured, Refused), deadline=DEADLINE)
kitchen, host = Service("kitchen"), Service("host")


@kitchen.handler(Asked)
def pour(asked: Asked) -> Poured | Refused | None:
    """Some wait for ever."""
    if asked.who == "Bob":
        return Refused()
    return Poured(who=asked.who) if asked.who == "Ada" else None


@overdue(tea)
def tea_late(late: FlowOverdue, ctx: Context) -> TeaLate:
    """Apologise."""
    assert ctx.correlation_id == late.correlation_id
    assert (late.flow, late.deadline_s) == ("tea", 3600.0)
    return TeaLate(who=late.key, since=late.started_at)


@host.handler(TeaLate)
def apologise(late: TeaLate) -> None:
    """In person."""


def watched() -> App:
    """The watch alone: what is published is all there is."""
    return App(tea_late, host)


def states(t: TestApp) -> list[tuple[str, bool]]:
    """Of the watch's instances."""
    return [(state, bool(ended)) for state, ended in t.rows("SELECT state, ended FROM choreo_instance ORDER BY key")]


async def told(t: TestApp) -> list[TeaLate]:
    """What the watch has emitted."""
    return [TeaLate.from_payload(each.value or b"") for each in await t.running.transport.scan(["late"], since_ms=0)]


async def test_a_flow_without_an_end_is_told_once_at_its_deadline() -> None:
    """As part of the flow, with what is known of it; whoever is served or refused hears nothing."""
    async with TestApp(App(kitchen, tea_late, host, flows=[tea])) as t:
        began = t.now()
        ada, bob, eve = [await t.publish(Asked(who=who)) for who in ("Ada", "Bob", "Eve")]
        await t.settle()
        await t.advance(minutes=59, seconds=59)
        assert "tea.late" not in eve.types
        await t.advance(seconds=2)
        await t.settle()
        assert eve.types.count("tea.late") == 1
        assert await told(t) == [TeaLate(who="Eve", since=began)]
        await t.advance(days=3)
        await t.settle()
        assert len(await told(t)) == 1
        assert "tea.late" not in [*ada.types, *bob.types]
        assert sorted(states(t)) == [("ended", True), ("ended", True), ("overdue", False)]
        assert t.rows("SELECT * FROM choreo_timer") == []
        assert not t.dead_letters


async def test_whatever_the_order_an_end_keeps_it_silent() -> None:
    """The end first, as across topics it may come; twice; of another kind; and a second start."""
    orders: list[list[Event]] = [
        [Poured(who="Ada"), Asked(who="Ada")],
        [Asked(who="Ada"), Asked(who="Ada"), Poured(who="Ada")],
        [Refused(), Poured(who="Ada"), Asked(who="Ada"), Asked(who="Ada")],
    ]
    async with TestApp(watched()) as t:
        for number, order in enumerate(orders):
            for event in order:
                await t.running.publish(event, correlation_id=f"flow {number}")
                await t.settle()
        await t.advance(hours=5)
        await t.settle()
        assert states(t) == [("ended", True)] * 3
        assert (await told(t), t.rows("SELECT * FROM choreo_timer")) == ([], [])


async def test_an_end_that_comes_too_late_is_noted() -> None:
    """The flow was told, and no second time."""
    async with TestApp(watched()) as t:
        await t.running.publish(Asked(who="Eve"), correlation_id="flow")
        await t.settle()
        await t.advance(hours=2)
        await t.running.publish(Poured(who="Eve"), correlation_id="flow")
        await t.settle()
        assert states(t) == [("ended-late", True)]
        assert len(await told(t)) == 1


async def test_an_end_without_a_start_is_not_waited_for_for_ever() -> None:
    """Its flow began before there was a watch, or is none; a deadline later nothing is waiting."""
    async with TestApp(watched()) as t:
        await t.publish(Poured(who="Ada"))
        await t.settle()
        assert states(t) == [("end-first", False)]
        await t.advance(hours=2)
        await t.settle()
        assert states(t) == [("ended", True)]
        assert (await told(t), t.rows("SELECT * FROM choreo_timer")) == ([], [])


def test_a_watch_that_was_away_reads_what_it_missed_before_it_tells() -> None:
    """The deadline passed meanwhile: what is left of it counts from when the watch is back."""
    driven = Driven(tea_late.manager)
    driven.take(Asked(who="Ada"))
    driven.memory.now_ms += 7_200_000
    (timer,) = driven.memory.set.values()
    assert driven.take(driven.process.due(**timer._asdict())) == []
    assert (
        driven.wait(timedelta(seconds=59)) == driven.take(Poured(who="Ada")) == driven.wait(timedelta(days=1)) == []
    )
    assert driven.at("flow") == "ended"


def test_it_is_a_definition_without_problems() -> None:
    """An instance a flow, of which only the timer emits; `choreo check` finds nothing to mend in it."""
    definition = tea_late.manager.definition()
    assert isinstance(tea_late, Watch)
    assert (definition.name, list(problems(definition)), definition.emits()) == ("tea-late", [], {"tea.late"})
    assert set(definition.correlate.values()) == {CORRELATION}
    assert definition.state("overdue").timers == ()
    assert [rule.emits for state in definition.states for rule in state.rules if rule.emits] == []
    drawn = state_diagram(definition)
    assert "s0 --> s1: after 59 min" in drawn
    assert "s1 --> s2: after 1 min / tea.late" in drawn
    assert [each.id for each in consistency(App(kitchen, tea_late, host, flows=[tea]).capability())] == ["dead_end"]
    short = overdue(Flow("tea", starts=Asked, ends=Poured, deadline=timedelta(seconds=2)), name="half")
    halves = [short(tea_late._function).manager.definition().state(name) for name in ("running", "nearly-due")]
    assert [timer.delay_s for state in halves for timer in state.timers] == [1.0, 1.0]


def test_it_can_be_called_as_the_function_it_is() -> None:
    """As a test of the application's does."""
    now = datetime(2026, 1, 1, tzinfo=UTC)
    found = FlowOverdue("tea", "fake-id", "Eve", now, 3600.0)
    assert tea_late(found, Context.fake()) == TeaLate(who="Eve", since=now)


def test_what_does_not_hold_together_is_refused() -> None:
    """No deadline, a coroutine, what it cannot be given; and a store without timers, when it is to run."""

    async def waits(late: FlowOverdue) -> None: ...

    def wrong(asked: Asked) -> None: ...

    def two(late: FlowOverdue, again: FlowOverdue) -> None: ...

    def silent(late: FlowOverdue): ...  # type: ignore[no-untyped-def]

    for function, message in (
        (waits, "must be a plain def"),
        (wrong, "asked is to be a FlowOverdue, from choreo.process, or a Context"),
        (two, "cannot be given 'again'"),
        (silent, "no return annotation"),
    ):
        with pytest.raises(DeclarationError, match=message):
            overdue(tea)(function)
    with pytest.raises(DeclarationError, match="without a deadline it is never overdue"):
        overdue(Flow("tea", starts=Asked, ends=Poured))(tea_late._function)
    (plan,) = watched().plans(["tea-late"])
    with pytest.raises(ConfigurationError, match=r"instances and timers .* the store redis keeps neither"):
        check_pair(plan, RedisStore("redis://127.0.0.1"))
