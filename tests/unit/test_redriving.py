"""Dead letters replayed to running services: to the one handler, once, or again; and what has become of each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from choreo import App, Context, Event, Reject, Service
from choreo.envelope import read as read_envelope
from choreo.ports import TopicSpec
from choreo.record import ProducerRecord
from choreo.runtime.letters import Letter
from choreo.runtime.ordering import Operator, Orders, partitions_of_replays, send
from choreo.runtime.redriving import Reading, Redrive, read
from choreo.runtime.replaying import Mode
from choreo.telemetry.spans import OtelInstrument
from choreo.testing import TestApp
from choreo.testing.clock import VirtualClock


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str
    cups: int = 1


class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str


@dataclass
class Shop:
    """Two services; `kitchen.pour` fails for whom is in `refused`. `calls` and `keys` remember its invocations."""

    refused: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def app(self) -> App:
        """The app."""
        kitchen, bell = Service("kitchen"), Service("bell")

        @kitchen.handler(Asked)
        async def pour(asked: Asked, ctx: Context) -> Poured:
            self.calls.append(f"pour {asked.who}{asked.cups}")
            self.keys.append(ctx.idempotency_key)
            if asked.who in self.refused:
                raise Reject("no tea for them")
            return Poured(who=asked.who)

        @kitchen.handler(Asked)
        async def count(asked: Asked) -> None:
            self.calls.append(f"count {asked.who}{asked.cups}")

        @bell.handler(Asked)
        async def hear(asked: Asked) -> None:
            self.calls.append(f"hear {asked.who}{asked.cups}")

        @bell.handler(Poured)
        async def ring(poured: Poured) -> None:
            self.calls.append(f"ring {poured.who}")

        return App(kitchen, bell)


@asynccontextmanager
async def failed(shop: Shop, *guests: str) -> AsyncIterator[TestApp]:
    """Every guest's first event is a dead letter of `kitchen.pour`; what is wrong with them is mended by now."""
    shop.refused = set(guests)
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        for guest in guests:
            await t.publish(Asked(who=guest))
            await t.settle()
        assert [letter.handler for letter in t.dead_letters] == ["pour"] * len(guests)
        shop.refused, shop.calls = set(), []
        yield t


async def look(t: TestApp) -> Reading:
    """The dead letters as they are now."""
    return await read(t.running.transport, list(t.app.services.values()), t.app.topic, since_ms=0)


async def orders(
    t: TestApp, mode: Mode = "if-not-done", run: str = "run-1", reading: Reading | None = None
) -> Orders:
    """What one operator orders about all of them."""
    services = t.app.services
    partitions = await partitions_of_replays(t.running.transport, list(services.values()), t.app.topic)
    redrive = Redrive(services, t.app.topic, partitions, Operator("ada@desk", "why", run), t.clock.now_s())
    reading = reading or await look(t)
    return redrive.letters(reading, reading.letters, mode)


async def order(t: TestApp, mode: Mode = "if-not-done", run: str = "run-1") -> Orders:
    """The same, sent, and handled."""
    found = await orders(t, mode, run)
    await send(t.running.transport, found.records, t.clock)
    await t.settle()
    return found


async def emitted(t: TestApp) -> list[str]:
    """Ids of what was poured."""
    records = await t.running.transport.scan(["pours"], since_ms=0)
    return [read_envelope(record.headers, record.value or b"")[0].id for record in records]


def states(reading: Reading) -> list[str]:
    """Of each dead letter."""
    return [reading.fate(letter).state for letter in reading.letters]


async def test_replay_goes_to_the_one_handler_that_failed() -> None:
    """Neither another handler nor another service hears it, nor does anybody who reads the original topic."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        before = len(await t.running.transport.scan(["asks"], since_ms=0))
        found = await order(t)
        assert (len(found.records), found.handlers) == (1, {"kitchen.pour": 1})
        assert shop.calls == ["pour Ada1", "ring Ada"]
        assert len(await t.running.transport.scan(["asks"], since_ms=0)) == before
        reading = await look(t)
        assert states(reading) == ["replayed"]
        (told,) = reading.fate(reading.letters[0]).orders
        assert (told.by, told.note, told.mode, told.letter) == (
            "ada@desk",
            "why",
            "if-not-done",
            reading.letters[0].id,
        )


async def test_letter_that_two_operators_replay_at_once_has_its_effect_once() -> None:
    """Both saw it open, so both send it: its replay has an identity of its own, which is handled once."""
    shop = Shop()
    async with failed(shop, "Ada", "Bob") as t:
        one, other = await orders(t, run="one"), await orders(t, run="other")
        for each in (one, other, one):
            assert len(each.records) == 2
            await send(t.running.transport, each.records, t.clock)
        await t.settle()
        assert Counter(shop.calls) == {"pour Ada1": 1, "pour Bob1": 1, "ring Ada": 1, "ring Bob": 1}
        assert t.running.workers["kitchen"].counts["duplicates"] == 4


async def test_copies_of_a_letter_are_replayed_once() -> None:
    """A dead letter is an emit, and may be on its topic twice."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        (letter,) = t.dead_letters
        record = letter.record
        copy = ProducerRecord(record.topic, record.key, record.value, record.headers)
        await t.send(copy)
        found = await order(t)
        assert len(found.records) == 1
        assert sum(found.left_out.values()) == 1
        assert shop.calls == ["pour Ada1", "ring Ada"]
        assert states(await look(t)) == ["replayed", "replayed"]


async def test_what_is_replayed_is_left_out_the_next_time() -> None:
    """Also when its key is long forgotten: the order itself is on the log."""
    shop = Shop()
    async with failed(shop, "Ada", "Bob") as t:
        reading = await look(t)
        (first, _) = (await orders(t)).records
        await send(t.running.transport, [first], t.clock)  # and the command is killed
        found = await order(t)
        assert (len(found.records), dict(found.left_out)) == (1, {"replayed already": 1})
        assert Counter(shop.calls) == {"pour Ada1": 1, "pour Bob1": 1, "ring Ada": 1, "ring Bob": 1}
        assert len(reading.letters) == 2


async def test_force_does_it_again_and_a_run_goes_on_without_repeating() -> None:
    """Each run is another replay, whose emits have ids of their own, so that the next service handles them too."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        await order(t)
        for run, sent in (("one", 1), ("one", 0), ("two", 1)):
            found = await order(t, "force", run)
            assert len(found.records) == sent, run
        assert Counter(shop.calls) == {"pour Ada1": 3, "ring Ada": 3}
        assert len(set(await emitted(t))) == 3


async def test_forced_run_sent_twice_has_its_effect_once() -> None:
    """A crash of the command between the send and its end, and the run gone on with."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        found = await orders(t, "force", "one")
        for _ in range(2):
            await send(t.running.transport, found.records, t.clock)
        await t.settle()
        assert shop.calls == ["pour Ada1", "ring Ada"]


async def test_outside_calls_know_a_replay_again_unless_it_is_forced() -> None:
    """A charge that went through before its handler failed must not be made twice."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        await order(t)
        await order(t, "force")
        first, replayed, forced = shop.keys
        assert replayed == first
        assert forced != first


async def test_emits_of_a_replay_are_those_of_the_first_attempt() -> None:
    """Some stores send before they commit: what was sent before a crash is the same event."""
    shop, sound = Shop(), Shop()
    async with TestApp(sound.app(), create_replay_topics=True) as t:
        await t.publish(Asked(who="Ada"), id="a-1")
        await t.settle()
        expected = await emitted(t)
    shop.refused = {"Ada"}
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        await t.publish(Asked(who="Ada"), id="a-1")
        await t.settle()
        shop.refused = set()
        await order(t)
        assert await emitted(t) == expected


async def test_replay_that_fails_is_another_dead_letter_of_the_same_event() -> None:
    """It names the event's own place and can be replayed in its turn; the first one is done with."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        shop.refused = {"Ada"}
        await order(t)
        reading = await look(t)
        first, second = reading.letters
        assert states(reading) == ["failed_again", "open"]
        assert reading.fate(first).failed_as == second.id
        assert second.original == first.original
        assert second.handler == "pour"
        assert not any(name.startswith("choreo-replay-") for name, _ in second.record.headers)
        shop.refused = set()
        shop.calls = []
        found = await order(t)
        assert len(found.records) == 1
        assert shop.calls == ["pour Ada1", "ring Ada"]
        assert states(await look(t)) == ["failed_again", "replayed"]


async def test_forced_replay_that_failed_is_replayed_as_what_it_was() -> None:
    """Its emits are not those of the first time, which everybody has; its charge is that of the forced attempt."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        await order(t)
        shop.refused = {"Ada"}
        await order(t, "force", "one")
        shop.refused = set()
        await order(t)
        assert Counter(shop.calls) == {"pour Ada1": 3, "ring Ada": 2}
        first, replayed, forced, mended = shop.keys
        assert (first, forced) == (replayed, mended)
        assert first != forced
        assert len(set(await emitted(t))) == 2


async def test_dropped_letter_is_marked_and_kept() -> None:
    """It is left out of replays from then on, unless they are forced; no record is deleted."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        await order(t, "drop")
        reading = await look(t)
        assert states(reading) == ["dropped"]
        assert (await order(t, "drop")).records == []
        assert (await order(t)).records == []
        assert shop.calls == []
        assert t.running.workers["kitchen"].counts["skipped_drop_mark"] == 1
        await order(t, "force")
        assert shop.calls == ["pour Ada1", "ring Ada"]
        assert states(await look(t)) == ["replayed"]


async def test_events_of_a_key_are_replayed_in_their_order() -> None:
    """The record's key goes with them, so a lane keeps them apart from other keys and in order."""
    shop = Shop()
    shop.refused = {"Ada", "Bob"}
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        for cups in range(1, 9):
            for who in ("Ada", "Bob"):
                await t.publish(Asked(who=who, cups=cups))
        await t.settle()
        shop.refused, shop.calls = set(), []
        found = await order(t)
        assert len(found.records) == 16
        for who in ("Ada", "Bob"):
            assert [each for each in shop.calls if each.startswith(f"pour {who}")] == [
                f"pour {who}{cups}" for cups in range(1, 9)
            ]


async def test_collided_letter_is_replayed_as_an_event_of_its_own() -> None:
    """Under the id of another event its emits would be duplicates of that one's, and its charge that one's too."""
    shop = Shop()
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        await t.publish(Asked(who="Ada"), id="same")
        await t.settle()
        await t.publish(Asked(who="Ada", cups=2), id="same")
        await t.settle()
        reading = await look(t)
        assert {letter.reason for letter in reading.letters} == {"id_collision"}
        shop.calls = []
        await order(t)
        assert Counter(shop.calls) == {"pour Ada2": 1, "count Ada2": 1, "hear Ada2": 1, "ring Ada": 1}
        assert len(set(shop.keys)) == 2


async def test_letter_that_cannot_be_replayed_says_why() -> None:
    """Its handler is gone, or not all of it is there."""
    shop = Shop()
    async with failed(shop, "Ada") as t:
        reading = await look(t)
        (letter,) = reading.letters
        gone = Letter(letter.record, {**letter.told, "handler": "brew"})
        cut = Letter(letter.record, {**letter.told, "truncated": "3000000"})
        found = await orders(t, reading=Reading([gone], {}, {}, [], frozenset()))
        assert found.records == []
        assert list(found.impossible) == ["kitchen has no handler 'brew' any more"]
        found = await orders(t, reading=Reading([cut], {}, {}, [], frozenset()))
        assert found.records == []
        assert "not all of the event" in next(iter(found.impossible))
        refused = Letter(letter.record, {**letter.told, "reason": "replay_refused"})
        found = await orders(t, "force", reading=Reading([refused], {}, {}, [], frozenset()))
        assert found.records == []
        assert "a replay that was refused" in next(iter(found.impossible))
        found = await orders(t, "drop", reading=Reading([cut], {}, {}, [], frozenset()))
        assert len(found.records) == 1


async def test_history_is_handled_by_one_handler_if_not_done() -> None:
    """Events the handler has handled are duplicates by their own key; forced, they are handled again."""
    shop = Shop()
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        for who in ("Ada", "Bob"):
            await t.publish(Asked(who=who))
        await t.settle()
        services, transport = t.app.services, t.running.transport
        partitions = await partitions_of_replays(transport, list(services.values()), t.app.topic)
        redrive = Redrive(services, t.app.topic, partitions, Operator("ada", run="one"), t.clock.now_s())
        history = await transport.scan(["asks"], since_ms=0)
        shop.calls = []
        for mode, calls in (("if-not-done", 0), ("force", 1), ("force", 1)):
            chosen: Mode = "force" if mode == "force" else "if-not-done"
            found = redrive.events("kitchen", "pour", t.app.router("kitchen"), history, chosen)
            assert len(found.records) == 2
            await send(transport, found.records, t.clock)
            await t.settle()
            expected = {f"{name} {who}": 1 for name in ("pour", "ring") for who in ("Ada1", "Bob1")}
            assert sum(Counter(shop.calls).values()) == calls * len(expected), mode
        assert len(set(await emitted(t))) == 4
        assert redrive.events("bell", "ring", t.app.router("bell"), history, "force").left_out.total() == 2


async def test_rate_is_kept() -> None:
    """Events a second, from the first on; each batch goes out when it is due."""
    clock, sent = VirtualClock(), list[tuple[float, int]]()
    begun_s = clock.monotonic_s()

    class Takes:
        async def send(self, records: list[ProducerRecord]) -> None:
            sent.append((clock.monotonic_s() - begun_s, len(records)))

    async def sleep(delay_s: float) -> None:
        clock.move_to(clock.now_s() + delay_s)

    clock.sleep = sleep  # type: ignore[method-assign]
    records = [ProducerRecord("t", None, b"", ())] * 100
    await send(Takes(), records, clock, rate=50)  # type: ignore[arg-type]
    assert sum(count for _, count in sent) == 100
    for at, (due_s, _) in enumerate(sent):
        assert due_s >= at * 5 / 50 - 1e-6
    assert max(count for _, count in sent) == 5
    assert 1.8 <= sent[-1][0] <= 2.0


async def test_replay_begins_a_trace_of_its_own_linked_to_the_first() -> None:
    """Days may lie between: a trace that long is found by no search."""
    exporter, provider, shop = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False), Shop(refused={"Ada"})
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with TestApp(shop.app(), create_replay_topics=True) as t:
        worker = t.running.workers["kitchen"]
        worker.ports.instrument = OtelInstrument("kitchen", tracer_provider=provider, system="choreo")
        await t.publish(Asked(who="Ada"))
        await t.settle()
        shop.refused = set()
        await order(t)
        spans = {span.name: span for span in exporter.get_finished_spans()}
        dead, again, poured = spans["send kitchen.dlq"], spans["process kitchen.replay"], spans["send pours"]
        assert dead.context is not None
        assert again.context is not None
        assert poured.context is not None
        assert again.parent is None
        assert again.context.trace_id != dead.context.trace_id
        assert [link.context.span_id for link in again.links] == [dead.context.span_id]
        assert poured.context.trace_id == again.context.trace_id


async def test_service_that_starts_at_the_end_reads_replays_from_the_first(tmp_path: Path) -> None:
    """One that was ordered before it knew of the topic waits for it: it must not be passed over."""
    calls: list[str] = []
    kitchen = Service("kitchen", start="latest")

    @kitchen.handler(Asked)
    async def pour(asked: Asked) -> None:
        calls.append(asked.who)
        if len(calls) == 1:
            raise Reject("not yet")

    app, broker = App(kitchen), f"embedded:{tmp_path}/log.db"
    async with app.running(broker=broker, create_topics=True) as running:
        worker = running.workers["kitchen"]
        await until(lambda: len(worker.leases) == 4)
        await running.publish(Asked(who="Ada"))
        await until(lambda: worker.counts["dead_letters"] == 1)
        await running.transport.create_topics([TopicSpec("kitchen.replay", 1)])
        reading = await read(running.transport, [kitchen], app.topic, since_ms=0)
        redrive = Redrive(app.services, app.topic, {"kitchen": 1}, Operator("ada"), 0.0)
        orders = redrive.letters(reading, reading.letters, "if-not-done")
        await send(running.transport, orders.records, running.settings.clock)
    assert calls == ["Ada"]
    async with app.running(broker=broker) as running:
        await until(lambda: running.workers["kitchen"].counts["handled"] == 1)
    assert calls == ["Ada", "Ada"]


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
