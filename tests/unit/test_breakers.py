"""Breakers in a whole app in virtual time: what they save, and that all stays bounded."""

import sqlite3
from collections.abc import Callable

import pytest

from choreo import App, Breaker, DeclarationError, Delayed, Reject, RetryPolicy, Service
from choreo.core.messages import Limits
from choreo.service import Retry
from choreo.testing import TestApp
from tests.unit.test_retries import Asked, Poured


def guarded(breaker: Breaker, retry: Retry, down: Callable[[], bool]) -> tuple[App, list[str]]:
    """An app whose handler fails while its provider is down; and whose calls it got."""
    service, calls = Service("kitchen"), list[str]()

    @service.handler(Asked, retry=retry, breaker=breaker)
    async def pour(asked: Asked) -> Poured:
        calls.append(asked.who)
        if down():
            raise ConnectionError
        return Poured(who=asked.who)

    return App(service), calls


@pytest.mark.parametrize("retry", [RetryPolicy(3, base_s=0.1, cap_s=0.1), Delayed(1, 1)])
async def test_breaker_saves_events_from_a_provider_that_is_down(
    retry: Retry, caplog: pytest.LogCaptureFixture
) -> None:
    """Without it every event is a dead letter in a second or two; with it all but the first few are handled."""
    up_s = 0.0
    breaker = Breaker(failures=2, pause_s=60, on=(ConnectionError,))
    app, calls = guarded(breaker, retry, lambda: t.clock.now_s() < up_s)
    async with TestApp(app, limits=Limits(concurrency=2)) as t:
        up_s = t.clock.now_s() + 100
        for number in range(20):
            await t.publish(Asked(who=str(number)))
        await t.settle()
        assert not t.dead_letters
        assert 20 < len(calls) <= 24
        assert len(await t.running.transport.scan(["cups"], since_ms=0)) == 20
        assert t.running.workers["kitchen"].counts["breaker_opened"] == 2
    said = [record.getMessage() for record in caplog.records if "breaker" in record.getMessage()]
    opened = "kitchen.pour: its breaker is open: no attempt for 60 s, then one"
    assert said == [opened, opened, "kitchen.pour: its breaker is closed, what waited goes on"]


async def test_breaker_leaves_retries_bounded() -> None:
    """A provider that is never up again: one attempt a pause, and in the end every event is a dead letter."""
    app, calls = guarded(Breaker(failures=2, pause_s=60), RetryPolicy(2), lambda: True)
    async with TestApp(app, limits=Limits(concurrency=1)) as t:
        began = t.now()
        for number in range(5):
            await t.publish(Asked(who=str(number)))
        await t.settle()
        assert sorted(calls) == sorted(str(number) for number in range(5) for _ in range(2))
        assert len(t.dead_letters) == 5
        assert (t.now() - began).total_seconds() >= 60 * (len(calls) - 2)


async def test_breaker_counts_no_other_exception() -> None:
    """A bug in the handler is none of the provider's, and a refused event is an answer."""
    service = Service("kitchen")

    @service.handler(Asked, retry=RetryPolicy(2), breaker=Breaker(2, 60, on=(ConnectionError,)))
    async def pour(asked: Asked) -> None:
        raise Reject("no cups") if asked.who == "Ada" else KeyError

    async with TestApp(App(service)) as t:
        for who in ("Ada", "Bob", "Ada", "Bob"):
            await t.publish(Asked(who=who))
        await t.settle()
        assert len(t.dead_letters) == 4
        assert not t.running.workers["kitchen"].counts["breaker_opened"]


async def test_breaker_of_a_handler_with_a_transaction() -> None:
    """It begins none while it is open, so the database has its writers for itself."""
    service, fails = Service("kitchen"), [True]

    @service.on_start
    def tables(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS cup (who TEXT)")

    @service.handler(Asked, retry=RetryPolicy(3), breaker=Breaker(1, 60))
    def pour(asked: Asked, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO cup VALUES (?)", (asked.who,))
        if fails[0]:
            raise ConnectionError

    async with TestApp(App(service)) as t:
        for number in range(10):
            await t.publish(Asked(who=str(number)))
        await t.advance(seconds=50)
        assert t.rows("SELECT count(*) FROM cup") == [(0,)]
        fails[0] = False
        await t.settle()
        assert t.rows("SELECT count(*), count(DISTINCT who) FROM cup") == [(10, 10)]
        assert not t.dead_letters


def test_breaker_that_is_none_is_refused() -> None:
    """A number says too little."""
    with pytest.raises(DeclarationError, match=r"kitchen\.pour: breaker=5 must be Breaker"):
        Service("kitchen").handler(Asked, breaker=5, name="pour")(lambda asked: None)  # type: ignore[arg-type]
