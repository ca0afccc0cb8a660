"""Retries of a whole app in virtual time: by exception, and through delay topics."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import INVALID_SPAN_CONTEXT

from choreo import (
    App,
    ConfigurationError,
    Context,
    DeclarationError,
    Delayed,
    Event,
    Reject,
    RetryLater,
    RetryPolicy,
    Service,
)
from choreo.core.emission import key_digest
from choreo.core.messages import Limits
from choreo.envelope import Envelope, write
from choreo.record import Header, ProducerRecord
from choreo.runtime.emitting import original
from choreo.runtime.replaying import Replay, replay_record
from choreo.runtime.retrying import Retried, retried_headers
from choreo.service import Retry
from choreo.telemetry.spans import OtelInstrument
from choreo.testing import TestApp


class Asked(Event, type="tea.asked", topic="teas", key="who"):
    """Somebody wants tea."""

    who: str


class Poured(Event, type="tea.poured", topic="cups", key="who"):
    """There is a cup."""

    who: str


def failing(retry: Retry, fails: Callable[[int], Exception | None]) -> tuple[App, list[int]]:
    """An app whose one handler raises what `fails` says of an attempt; and the attempts it saw."""
    service, attempts = Service("kitchen"), list[int]()

    @service.handler(Asked, retry=retry)
    async def pour(asked: Asked, ctx: Context) -> Poured:
        attempts.append(ctx.attempt)
        error = fails(ctx.attempt)
        if error is not None:
            raise error
        return Poured(who=asked.who)

    return App(service), attempts


@pytest.mark.parametrize(
    ("error", "calls", "reason"),
    [
        (ValueError("bad"), 1, "rejected"),
        (TimeoutError(), 7, "handler_failed"),
        (ConnectionResetError(), 2, "handler_failed"),
        (KeyError("x"), 3, "handler_failed"),
        (RetryLater(1), 3, "handler_failed"),
        (Reject("no"), 1, "rejected"),
    ],
)
async def test_rule_of_an_exception_bounds_its_attempts(error: Exception, calls: int, reason: str) -> None:
    """Each type has its own number, `Reject` gives up at once, and the rest follow the policy itself."""
    policy = RetryPolicy(3, on={ValueError: Reject, TimeoutError: RetryPolicy(7), ConnectionError: RetryPolicy(2)})
    app, attempts = failing(policy, lambda _: error)
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == list(range(1, calls + 1))
        assert [(each.reason, each.attempts) for each in t.dead_letters] == [(reason, calls)]


async def test_attempts_count_whatever_was_raised_before() -> None:
    """Two types that take turns do not keep an event for ever: each is held to the number of all attempts."""
    policy = RetryPolicy(3, on={TimeoutError: RetryPolicy(10)})
    app, attempts = failing(policy, lambda n: TimeoutError() if n < 6 else KeyError())
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == [1, 2, 3, 4, 5, 6]
        assert [each.attempts for each in t.dead_letters] == [6]


async def test_rule_of_an_exception_has_its_own_waits() -> None:
    """Not those of the policy it is an exception to."""
    slow = RetryPolicy(2, base_s=1_000.0, cap_s=1_000.0)
    app, _ = failing(RetryPolicy(3, on={TimeoutError: slow}), lambda n: TimeoutError() if n == 1 else None)
    async with TestApp(app) as t:
        began = t.now()
        await (await t.publish(Asked(who="Ada"))).settled()
        assert (t.now() - began).total_seconds() > 10  # the policy's own cap
        assert not t.dead_letters


def test_retry_that_is_no_policy_is_refused() -> None:
    """A number says neither how long nor how often."""
    with pytest.raises(DeclarationError, match=r"Service\('kitchen'\): retry=5 must be RetryPolicy"):
        Service("kitchen", retry=5)  # type: ignore[arg-type]
    with pytest.raises(DeclarationError, match=r"kitchen\.pour: retry="):
        Service("kitchen").handler(Asked, retry=(1, 2), name="pour")(lambda asked: None)  # type: ignore[arg-type]


# ---- delay topics


async def test_delayed_event_waits_on_the_log_and_is_handled_by_then() -> None:
    """Attempts go on counting over the delays, each takes its time, and the flow goes on with the event's own id."""
    app, attempts = failing(Delayed(10, 60), lambda n: KeyError() if n < 3 else None)
    async with TestApp(app) as t:
        began = t.now()
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        assert attempts == [1, 2, 3]
        assert 70 <= (t.now() - began).total_seconds() < 71
        assert flow.types == ["tea.asked", "tea.poured"]
        asked, poured = flow.envelopes
        assert poured.causationid == asked.id
        assert not t.dead_letters
        counts = t.running.workers["kitchen"].counts
        assert (counts["delayed"], counts["handled"], counts["failed_attempts"]) == (2, 1, 2)


async def test_flow_is_not_settled_while_a_delayed_retry_of_it_lies_unread() -> None:
    """However long it takes until somebody fetches."""
    app, attempts = failing(Delayed(10), lambda n: KeyError() if n < 2 else None)
    async with TestApp(app) as t:
        consumer: Any = t.running.workers["kitchen"].consumer
        fetch = consumer.fetch

        async def slow(**bounds: Any) -> Any:
            await asyncio.sleep(0.02)
            return await fetch(**bounds)

        consumer.fetch = slow
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == [1, 2]


async def test_delayed_event_ends_as_a_dead_letter_with_all_its_attempts() -> None:
    """After the last delay there is no other; the letter says where the event lay first."""
    app, attempts = failing(Delayed(10, 60, 60, in_place=RetryPolicy(2)), lambda _: KeyError())
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == list(range(1, 9))
        [letter] = t.dead_letters
        assert (letter.handler, letter.reason, letter.attempts) == ("pour", "handler_failed", 8)
        told = original(letter.record)
        assert told["original-topic"] == "teas"
        assert "replay-id" not in told
        assert not any(name.startswith("choreo-retry-") for name, _ in letter.record.headers)


async def test_delayed_event_does_not_hold_its_key_up() -> None:
    """That is what it is for: later events of the key go by. The order within the key is given up."""
    app, _ = failing(Delayed(600), lambda n: KeyError() if n == 1 and not done else None)
    done: list[str] = []
    async with TestApp(app) as t:
        first = await t.publish(Asked(who="Ada"))
        await t.advance(seconds=5)
        done.append("mended")
        began = t.now()
        second = await t.publish(Asked(who="Ada"))
        await t.advance(seconds=5)
        assert second.types == ["tea.asked", "tea.poured"]
        assert first.types == ["tea.asked"]
        await first.settled()
        assert first.types == ["tea.asked", "tea.poured"]
        assert (t.now() - began).total_seconds() > 590


async def test_delayed_event_goes_to_the_handler_that_failed_only() -> None:
    """Another handler of the service, and another service, have had it once."""
    kitchen, bell = Service("kitchen"), Service("bell")
    calls: list[str] = []

    @kitchen.handler(Asked, retry=Delayed(10))
    async def pour(asked: Asked, ctx: Context) -> None:
        calls.append("pour")
        if ctx.attempt == 1:
            raise KeyError

    @kitchen.handler(Asked)
    async def count(asked: Asked) -> None:
        calls.append("count")

    @bell.handler(Asked, retry=Delayed(10))
    async def ring(asked: Asked) -> None:
        calls.append("ring")

    async with TestApp(App(kitchen, bell)) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert sorted(calls) == ["count", "pour", "pour", "ring"]


async def test_delayed_retry_sent_twice_is_handled_once() -> None:
    """As any emit it may be on the log twice; its key is that of the event and its number."""
    app, attempts = failing(Delayed(10, 60), lambda n: KeyError() if n < 3 else None)
    async with TestApp(app) as t:
        flow = await t.publish(Asked(who="Ada"))
        await t.advance(seconds=5)
        for record in await t.running.transport.scan(["kitchen.retry.10"], since_ms=0):
            await t.send(ProducerRecord(record.topic, record.key, record.value, record.headers))
        await t.settle()
        assert attempts == [1, 2, 3]
        assert flow.types == ["tea.asked", "tea.poured"]
        assert t.running.workers["kitchen"].counts["duplicates"] == 1


async def test_duplicate_of_an_event_that_waits_is_dropped() -> None:
    """Its key is done, as it has been taken care of."""
    app, attempts = failing(Delayed(600), lambda n: KeyError() if n == 1 else None)
    async with TestApp(app) as t:
        await t.publish(Asked(who="Ada"), id="ask-1")
        await t.advance(seconds=5)
        await t.publish(Asked(who="Ada"), id="ask-1")
        await t.settle()
        assert attempts == [1, 2]


async def test_delayed_attempts_give_the_outside_the_same_key() -> None:
    """Whoever was called by an attempt that failed has to know the next one again."""
    service, keys = Service("kitchen"), set[str]()

    @service.handler(Asked, retry=Delayed(10, 60))
    async def pour(asked: Asked, ctx: Context) -> None:
        keys.add(ctx.idempotency_key)
        raise KeyError

    async with TestApp(App(service)) as t:
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        envelope = flow.envelopes[0]
        assert keys == {key_digest("kitchen", "pour", envelope.source, envelope.id).hex()}


async def test_replay_of_a_dead_letter_may_be_delayed_too() -> None:
    """Its retries stay the replay's: with keys of their own, and of what is new the emits and the key outside too."""
    service, calls = Service("kitchen"), list[tuple[int, str]]()

    @service.handler(Asked, retry=Delayed(10, 60))
    async def pour(asked: Asked, ctx: Context) -> Poured:
        calls.append((ctx.attempt, ctx.idempotency_key))
        if len(calls) in (1, 2, 3, 4, 5, 7, 8):
            raise KeyError
        return Poured(who=asked.who)

    async with TestApp(App(service), create_replay_topics=True) as t:
        flow = await t.publish(Asked(who="Ada"))
        await flow.settled()
        [letter] = t.dead_letters
        first = calls[0][1]
        for id_, base in (("again", ""), ("anew", "anew")):
            order = Replay(id_, "pour", "force", "replay", base=base, original={"topic": "teas"})
            await t.send(replay_record(order, "kitchen.replay", letter.record, 1))
            await t.settle()
        assert [attempt for attempt, _ in calls] == [1, 2, 3] * 3
        assert {key for _, key in calls[:6]} == {first}
        [anew] = {key for _, key in calls[6:]}
        assert anew != first
        assert flow.types == ["tea.asked", "tea.poured", "tea.poured"]
        assert len({envelope.id for envelope in flow.envelopes}) == 3
        assert len(t.dead_letters) == 1


async def test_delayed_event_keeps_its_headers_but_for_its_trace() -> None:
    """Foreign ones stay as they were; what only choreo may say of a retry is said by choreo, and each once."""
    app, attempts = failing(Delayed(10), lambda n: KeyError() if n == 1 else None)
    trace = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
    async with TestApp(app) as t:
        event = write(Envelope("e-1", "/guests", "tea.asked", version=1, correlationid="flow", causationid="cause"))
        forged = (("choreo-retry-attempts", b"7"), ("choreo-replay-id", b"x"), ("traceparent", b"00-old"))
        headers = (*event, ("x-mine", b"\xff"), *forged, ("traceparent", trace))
        await t.send(ProducerRecord("teas", b"Ada", b'{"who":"Ada"}', headers))
        await t.settle()
        assert attempts == [1, 2]
        [record] = await t.running.transport.scan(["kitchen.retry.10"], since_ms=0)
        assert (record.key, record.value) == (b"Ada", b'{"who":"Ada"}')
        said = dict(record.headers)
        assert len(said) == len(record.headers)
        assert {*event, ("x-mine", b"\xff"), ("traceparent", trace)} <= set(record.headers)
        assert (said["choreo-retry-attempts"], said["choreo-retry-original-topic"]) == (b"1", b"teas")
        assert "choreo-replay-id" not in said


async def test_delayed_rows_are_rolled_back_and_written_once() -> None:
    """A handler with a transaction fails with its rows; the retry is committed without it."""
    service = Service("kitchen")

    @service.on_start
    def tables(db: sqlite3.Connection) -> None:
        db.execute("CREATE TABLE IF NOT EXISTS cup (who TEXT, attempt INTEGER)")

    @service.handler(Asked, retry=Delayed(10, 60))
    def pour(asked: Asked, ctx: Context, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO cup VALUES (?, ?)", (asked.who, ctx.attempt))
        if ctx.attempt < 3:
            raise KeyError

    async with TestApp(App(service)) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert t.rows("SELECT who, attempt FROM cup") == [("Ada", 3)]


async def test_rejected_event_of_a_delayed_handler_does_not_wait() -> None:
    """What can never succeed is a dead letter at once: raised so, ruled so, or unreadable."""
    policy = RetryPolicy(1, on={ValueError: Reject})
    app, attempts = failing(Delayed(10, 60, in_place=policy), lambda n: KeyError() if n == 1 else ValueError())
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == [1, 2]
        assert [(each.reason, each.attempts) for each in t.dead_letters] == [("rejected", 2)]


async def test_event_too_large_for_a_delay_topic_is_dead_lettered() -> None:
    """With more headers its topic might not take it, and that would be found out only once it is committed."""
    app, attempts = failing(Delayed(10), lambda _: KeyError())
    async with TestApp(app) as t:
        await (await t.publish(Asked(who="A" * 1_000_000))).settled()
        assert attempts == [1]
        assert [each.reason for each in t.dead_letters] == ["handler_failed"]


@pytest.mark.parametrize(
    "headers",
    [(), (("choreo-retry-handler", b"pour"),), (("choreo-retry-handler", b"pour"), ("choreo-retry-number", b"-1"))],
)
async def test_record_on_a_delay_topic_that_is_no_retry_is_a_dead_letter(headers: tuple[Header, ...]) -> None:
    """Whoever wrote it there; the service goes on."""
    app, attempts = failing(Delayed(10), lambda _: None)
    async with TestApp(app) as t:
        event = write(Envelope("e-1", "/guests", "tea.asked", version=1, correlationid="e-1"))
        await t.send(ProducerRecord("kitchen.retry.10", b"Ada", b'{"who":"Ada"}', (*event, *headers)))
        await t.settle()
        assert [each.reason for each in t.dead_letters] == ["not_a_retry"]
        await (await t.publish(Asked(who="Ada"))).settled()
        assert attempts == [1]


async def test_retry_of_a_handler_that_is_gone_is_a_dead_letter() -> None:
    """It was renamed while the event waited: nobody else gets it."""
    app, attempts = failing(Delayed(10), lambda _: None)
    async with TestApp(app) as t:
        event = write(Envelope("e-1", "/guests", "tea.asked", version=1, correlationid="e-1"))
        said = retried_headers(Retried("brew", 1, 3, {}))
        await t.send(ProducerRecord("kitchen.retry.10", b"Ada", b'{"who":"Ada"}', (*event, *said)))
        await t.settle()
        assert [(each.reason, each.handler) for each in t.dead_letters] == [("unknown_handler", "brew")]
        assert not attempts


def test_delay_topics_are_read_and_made_by_their_service() -> None:
    """One a delay, as wide as the others; what they hold are copies and no events of a flow."""
    service = Service("kitchen", retry=Delayed(60, 10, 60))

    @service.handler(Asked)
    def pour(asked: Asked) -> None: ...
    @service.handler(Asked, retry=Delayed(600))
    def stir(asked: Asked) -> None: ...

    app = App(service, topics={"kitchen.retry.60": "tea-again"})
    assert app.input_topics("kitchen") == ["teas", "kitchen.retry.10", "tea-again", "kitchen.retry.600"]
    specs = {spec.name: spec for spec in app.topic_specs(partitions=3, replication=2)}
    assert specs["tea-again"] == specs["kitchen.dlq"]._replace(name="tea-again")
    assert app.own_topics() == {
        "kitchen.dlq", "kitchen.replay", "kitchen.retry.10", "tea-again", "kitchen.retry.600"
    }  # fmt: skip


async def test_service_without_its_delay_topics_does_not_start() -> None:
    """What fails would have nowhere to go: it says which topic to make, and how."""
    app, _ = failing(Delayed(10), lambda _: None)
    with pytest.raises(ConfigurationError, match=r"do not exist: .*kitchen\.retry\.10.*choreo topics apply"):
        async with app.running(broker="embedded::memory:"):
            pass


async def test_delayed_attempt_is_below_the_one_that_sent_it() -> None:
    """In one trace, but for a delay longer than an hour, which begins one of its own with a link."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = Service("kitchen")

    @service.handler(Asked, retry=Delayed(60, 7_200))
    async def pour(asked: Asked, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise KeyError

    async with TestApp(App(service)) as t:
        instrument = OtelInstrument("kitchen", tracer_provider=provider, system="choreo")
        t.running.workers["kitchen"].ports.instrument = instrument
        await (await t.publish(Asked(who="Ada"))).settled()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    soon, late = spans["process kitchen.retry.60"], spans["process kitchen.retry.7200"]
    sent = [(spans[f"send kitchen.retry.{delay}"].context or INVALID_SPAN_CONTEXT).span_id for delay in (60, 7_200)]
    assert soon.parent is not None
    assert soon.parent.span_id == sent[0]
    assert late.parent is None
    assert [link.context.span_id for link in late.links] == [sent[1]]
    outcomes = [(span.attributes or {}).get("choreo.outcome") for span in spans.values() if "process" in span.name]
    assert outcomes == ["delayed", "delayed", "handled"]


async def test_thousands_of_delayed_events_are_each_handled_once_it_is_due() -> None:
    """More than a partition holds in memory: it pauses meanwhile and goes on as they become due."""
    service, times = Service("kitchen"), list[float]()

    @service.handler(Asked, retry=Delayed(100))
    async def pour(asked: Asked, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise KeyError
        times.append(ctx.now().timestamp())

    async with TestApp(App(service), partitions=1, limits=Limits(unfinished_max=50)) as t:
        began = t.now().timestamp()
        for number in range(200):
            await t.publish(Asked(who=str(number)))
        await t.settle()
        assert len(times) == 200
        assert min(times) - began >= 100
        assert max(times) - began < 110
        assert not t.dead_letters
