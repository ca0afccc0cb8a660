"""The App: what is refused when it is built, and what it gives its handlers while it runs."""

import asyncio
import contextvars
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from choreo import App, ConfigurationError, Context, DeclarationError, Event, Flow, Reject, RetryLater, Service
from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import RecordTooLarge
from choreo.record import ProducerRecord
from choreo.testing import TestApp


class Asked(Event, type="tea.asked", topic="teas", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", topic="cups", key="who"):
    """There is a cup."""

    who: str


class Kettle:
    """A resource."""

    def __init__(self, litres: int = 1) -> None:
        self.litres = litres


def test_app_without_the_resource_a_handler_asks_for_is_refused() -> None:
    """The message names the handler, the type and what to write."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked, kettle: Kettle) -> None: ...

    with pytest.raises(DeclarationError, match=r"kitchen\.pour: nothing of type Kettle .* App\(\.\.\., resources="):
        App(service)


def test_flow_that_nothing_ends_is_refused() -> None:
    """An end that no handler emits would never come."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked) -> None: ...

    with pytest.raises(DeclarationError, match="no handler emits Poured"):
        App(service, flows=[Flow("tea", starts=Asked, ends=Poured)])


def test_services_of_one_name_and_without_handlers_are_refused() -> None:
    """A name is part of the keys, and a service without handlers was not imported."""
    service = Service("kitchen")
    with pytest.raises(DeclarationError, match="has no handler"):
        App(service)
    service.handler(Asked, name="a", emits=())(lambda asked: None)
    with pytest.raises(DeclarationError):
        App(service, Service("kitchen"))


async def test_embedded_broker_takes_no_store() -> None:
    """Its store is in its own file, where one transaction holds both."""
    with pytest.raises(ConfigurationError, match="leave --store out"):
        async with kitchen().running(broker="embedded::memory:", store="sqlite:x.db"):
            pass


def kitchen(**options: Any) -> App:
    """One service that pours what is asked for."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked) -> Poured:
        return Poured(who=asked.who)

    return App(service, **options)


async def test_first_test_of_a_user() -> None:
    """Five lines: publish, settle, look."""
    async with TestApp(kitchen()) as t:
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        assert flow.types == ["tea.asked", "tea.poured"]
        assert not t.dead_letters


async def test_topics_are_logical_and_extensions_propagate() -> None:
    """`topics=` maps names, `propagate=` copies extensions to what is caused."""
    app = kitchen(topics={"cups": "cups-v2"}, propagate=["tenantid"])
    async with TestApp(app) as t:
        envelope = Envelope("1", "/shop", "tea.asked", version=1, correlationid="1", extensions={"tenantid": "t9"})
        await t.send(ProducerRecord("teas", b"Ada", b'{"who":"Ada"}', cloudevents.write(envelope)))
        await t.settle()
        (record,) = await t.running.transport.scan(["cups-v2"], since_ms=0)
        poured, _ = cloudevents.read(record.headers, record.value or b"")
    assert (poured.extensions, poured.correlationid, poured.causationid) == ({"tenantid": "t9"}, "1", "1")


async def test_resources_are_opened_once_closed_in_the_end_and_overridden() -> None:
    """An async generator lives as long as the app runs; a test puts another in its place."""
    said: list[str] = []

    async def kettle() -> AsyncIterator[Kettle]:
        said.append("on")
        yield Kettle(2)
        said.append("off")

    service = Service("kitchen")

    @service.handler(Asked)
    def pour(asked: Asked, kettle: Kettle) -> None:
        said.append(f"{kettle.litres} l")

    app = App(service, resources=[kettle])
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
    assert said == ["on", "2 l", "off"]
    async with TestApp(app, resources={Kettle: Kettle(5)}) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
    assert said[3:] == ["5 l"]


async def test_around_wraps_every_invocation_inside_a_commit_too() -> None:
    """A context variable set by a hook is seen by async handlers and by those in the store's transaction."""
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")
    seen: list[str] = []

    @asynccontextmanager
    async def bind_tenant(ctx: Context) -> AsyncIterator[None]:
        token = tenant.set(ctx.envelope.type)
        yield
        tenant.reset(token)

    service = Service("kitchen")

    @service.handler(Asked)
    async def look(asked: Asked) -> None:
        seen.append(tenant.get())

    @service.handler(Asked)
    def write(asked: Asked, db: sqlite3.Connection) -> None:
        seen.append(tenant.get())

    async with TestApp(App(service, around=[bind_tenant])) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
    assert seen == ["tea.asked", "tea.asked"]


async def test_every_form_of_handler_emits() -> None:
    """Coroutine, plain function, async iterator, generator, list: all by their annotation."""
    service = Service("kitchen")

    @service.handler(Asked)
    def listed(asked: Asked) -> list[Poured]:
        return [Poured(who="1"), Poured(who="2")]

    @service.handler(Asked)
    async def streamed(asked: Asked) -> AsyncIterator[Poured]:
        yield Poured(who="3")
        await asyncio.sleep(0)
        yield Poured(who="4")

    async with TestApp(App(service)) as t:
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        assert flow.types == ["tea.asked"] + ["tea.poured"] * 4
        assert len({envelope.id for envelope in flow.envelopes}) == 5


async def test_async_iterator_that_raises_sends_nothing() -> None:
    """What it yielded before is not sent: all or nothing."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def streamed(asked: Asked) -> AsyncIterator[Poured]:
        yield Poured(who="3")
        raise Reject("no more tea")

    async with TestApp(App(service)) as t:
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        assert flow.types == ["tea.asked"]
        assert [(letter.reason, letter.detail) for letter in t.dead_letters] == [("rejected", "no more tea")]


async def test_retry_later_waits_in_virtual_time_and_holds_up_its_own_key_only() -> None:
    """Three days pass in no time; another key went on meanwhile."""
    order: list[str] = []
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked, ctx: Context) -> None:
        if asked.who == "Ada" and ctx.attempt == 1:
            raise RetryLater(timedelta(days=3).total_seconds())
        order.append(f"{asked.who} {ctx.now().day}")

    async with TestApp(App(service)) as t:
        await t.publish(Asked(who="Ada"))
        bob = await t.publish(Asked(who="Bob"))
        await bob.settled()
        assert order == ["Bob 1"]
        await t.advance(days=3)
        await t.settle()
    assert order == ["Bob 1", "Ada 4"]


async def test_failing_handler_is_tried_five_times_and_its_rows_are_gone() -> None:
    """Then the dead letter names handler, reason and attempts; the payload is the original's."""
    service = Service("kitchen")

    @service.on_start
    def tables(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE cup (who TEXT)")

    @service.handler(Asked)
    def pour(asked: Asked, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO cup VALUES (?)", (asked.who,))
        if asked.who == "Ada":
            raise ValueError("secret 4711")

    async with TestApp(App(service)) as t:
        await t.publish(Asked(who="Ada"))
        await t.publish(Asked(who="Bob"))
        await t.settle()
        (letter,) = t.dead_letters
        assert (letter.handler, letter.reason, letter.attempts) == ("pour", "handler_failed", 5)
        assert letter.detail.startswith("ValueError at ")
        assert "4711" not in str(letter.record.headers)
        assert letter.record.value == b'{"who":"Ada"}'
        assert t.rows("SELECT who FROM cup") == [("Bob",)]


async def test_undeclared_emission_is_a_dead_letter_at_once() -> None:
    """It would be missing from every graph."""
    service = Service("kitchen")

    @service.handler(Asked, emits=())
    async def pour(asked: Asked) -> Poured:
        return Poured(who=asked.who)

    async with TestApp(App(service)) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        (letter,) = t.dead_letters
        assert letter.attempts == 1
        assert "its annotation declares None" in letter.detail


async def test_business_key_makes_a_second_event_a_duplicate() -> None:
    """Two events with two ids and one value of the named field are one."""
    service = Service("kitchen")

    @service.handler(Asked, idempotency_key="who")
    async def pour(asked: Asked) -> Poured:
        return Poured(who=asked.who)

    async with TestApp(App(service)) as t:
        first, second = await t.publish(Asked(who="Ada")), await t.publish(Asked(who="Ada"))
        await t.settle()
        assert (first.types, second.types) == (["tea.asked", "tea.poured"], ["tea.asked"])
        assert t.running.workers["kitchen"].counts["duplicates"] == 1


async def test_emit_too_large_for_a_topic_is_a_dead_letter_of_its_cause() -> None:
    """Committed first and refused by the topic then, it would stop the service for ever."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked) -> Poured:
        return Poured(who=asked.who * 300_000)

    async with TestApp(App(service)) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        (letter,) = t.dead_letters
        assert letter.detail == "the tea.poured it emits has 900010 bytes, the limit is 900000"


async def test_event_too_large_for_any_service_is_not_published() -> None:
    """It would be a dead letter of each; nothing of the same call is sent either."""
    service = Service("kitchen")

    @service.handler(Asked)
    async def pour(asked: Asked) -> None: ...

    async with TestApp(App(service)) as t:
        small, large = Asked(who="Ada"), Asked(who="A" * 1024 * 1024)
        with pytest.raises(RecordTooLarge, match=r"the tea\.asked has 1048586 bytes") as caught:
            await t.running.publisher.publish_many([(small, None), (large, None)])
        assert caught.value.index == 1
        assert not await t.running.transport.scan(["teas"], since_ms=0)
