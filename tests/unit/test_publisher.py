"""The publishers on the embedded log: order a key, bounded memory, errors of the caller's own, and what is left."""

import asyncio
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry import trace

from choreo import ConfigurationError, DeclarationError, Event, Publisher
from choreo.envelope import read as read_envelope
from choreo.errors import RecordTooLarge, TransportError
from choreo.opening import open_transport
from choreo.ports import TopicSpec
from choreo.publisher import BlockingPublisher
from choreo.record import ProducerRecord, Record
from choreo.runtime.sending import OrderedSender
from choreo.telemetry.traceparent import parse


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str
    cup: int


class Mixin(Event):
    """Not to be published."""

    who: str


@pytest.fixture
def broker(tmp_path: Path) -> str:
    """An embedded log with the topic, under another name."""
    url = f"embedded:{tmp_path}/log.db"

    async def prepare() -> None:
        transport = open_transport(url)
        await transport.open()
        await transport.create_topics([TopicSpec("shop.asks", 2)])
        await transport.close()

    asyncio.run(prepare())
    return url


def on_log(url: str) -> list[Record]:
    """All records."""

    async def scanned() -> Sequence[Record]:
        transport = open_transport(url)
        await transport.open()
        try:
            return await transport.scan(["shop.asks"], since_ms=0)
        finally:
            await transport.close()

    return sorted(asyncio.run(scanned()), key=lambda each: each[:3])


def cups(records: Sequence[Record], who: str) -> list[int]:
    """What one has asked for, in the log's order."""
    found = [Asked.from_payload(each.value) for each in records if each.value is not None]
    return [each.cup for each in found if each.who == who]


class Wire:
    """A log that stands still until told, and fails as told; `calls` as they came."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.go = asyncio.Event()
        self.errors: list[Exception | None] = []

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        self.calls.append([(each.value or b"").decode() for each in records])
        await self.go.wait()
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error


def record(key: str | None, value: str, topic: str = "t") -> ProducerRecord:
    """One to send."""
    return ProducerRecord(topic, None if key is None else key.encode(), value.encode(), ())


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def begun(sender: OrderedSender, *records: ProducerRecord) -> "list[asyncio.Task[list[BaseException | None]]]":
    """A task a record, each begun in turn."""
    tasks = []
    for each in records:
        tasks.append(asyncio.create_task(sender.send([each])))
        await settle()
    return tasks


def test_settings_come_from_the_environment(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broker and prefix; the reference names the topic as it is."""
    monkeypatch.setenv("CHOREO_BROKER", broker)
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", "shop.")

    async def publish() -> None:
        async with Publisher(source="/shop") as publisher:
            reference = await publisher.publish(Asked(who="ann", cup=1), id="ask-1")
            assert reference == ("ask-1", "ask-1", "shop.asks")
        assert publisher._instrument is None
        async with publisher:
            await publisher.publish(Asked(who="ann", cup=1), id="ask-1", correlation_id="party")

    asyncio.run(publish())
    envelopes = [read_envelope(each.headers, each.value or b"")[0] for each in on_log(broker)]
    assert [(each.source, each.id, each.correlationid) for each in envelopes] == [
        ("/shop", "ask-1", "ask-1"),
        ("/shop", "ask-1", "party"),
    ]


def test_topics_are_mapped_as_an_app_does(broker: str) -> None:
    """`topics=`, and a long iterable of events with and without ids."""

    async def publish() -> list[str]:
        events = ((Asked(who="ann", cup=n), f"ask-{n}") if n % 2 else Asked(who="ann", cup=n) for n in range(1200))
        async with Publisher(broker, topics={"asks": "shop.asks"}) as publisher:
            return [each.id for each in await publisher.publish_many(events)]

    ids = asyncio.run(publish())
    assert ids[1::2] == [f"ask-{n}" for n in range(1, 1200, 2)]
    assert cups(on_log(broker), "ann") == list(range(1200))


async def test_what_cannot_be_published_is_said() -> None:
    """No broker, not open, no topic, an id nobody reads."""
    with pytest.raises(ConfigurationError, match="CHOREO_BROKER"):
        async with Publisher():
            pass
    with pytest.raises(ConfigurationError, match="async with"):
        await Publisher("embedded::memory:").publish(Asked(who="ann", cup=1))
    async with Publisher("embedded::memory:") as publisher:
        with pytest.raises(DeclarationError, match="Mixin has no type"):
            await publisher.publish(Mixin(who="ann"))
        with pytest.raises(DeclarationError, match="hash it"):
            await publisher.publish(Asked(who="ann", cup=1), id="x" * 2000)
        with pytest.raises(TransportError, match="asks"):
            await publisher.publish(Asked(who="ann", cup=1))


async def test_publication_that_takes_too_long_fails() -> None:
    """After `timeout_s`, with the advice to take the same id again."""
    wire = Wire()

    class Slow:
        system, peer, send = "kafka", None, wire.send

    async with Publisher(Slow(), timeout_s=0.05) as publisher:  # type: ignore[arg-type]
        with pytest.raises(TransportError, match="same id"):
            await publisher.publish(Asked(who="ann", cup=1))
        wire.go.set()


async def test_concurrent_publications_keep_a_keys_order() -> None:
    """One call at a time; what comes meanwhile goes with the next one, in the order of the calls."""
    wire = Wire()
    sender = OrderedSender(wire.send)
    tasks = await begun(sender, record("a", "1"), record("a", "2"), record("b", "3"), record("a", "4"))
    assert wire.calls == [["1"]]
    wire.go.set()
    assert await asyncio.gather(*tasks) == [[None]] * 4
    assert wire.calls == [["1"], ["2", "3", "4"]]


async def test_what_waits_behind_a_failure_fails_with_it() -> None:
    """Else the second event of a key were on the log before the first, which is published again."""
    wire = Wire()
    failure = TransportError("no answer")
    wire.errors = [failure]
    sender = OrderedSender(wire.send)
    tasks = await begun(sender, record("a", "1"), record("a", "2"), record("b", "3"), record(None, "4"))
    wire.go.set()
    assert await asyncio.gather(*tasks) == [[failure], [failure], [None], [None]]
    assert wire.calls == [["1"], ["3", "4"]]
    assert await sender.send([record("a", "1"), record("a", "2")]) == [None, None]


async def test_too_large_record_fails_alone() -> None:
    """And what is behind it of its key; others of the same call are sent."""
    wire = Wire()
    large = RecordTooLarge("too large", index=1)
    wire.errors = [None, large]
    sender = OrderedSender(wire.send)
    tasks = await begun(
        sender, record("x", "0"), record("a", "1"), record("b", "2"), record("b", "3"), record("c", "4")
    )
    wire.go.set()
    assert await asyncio.gather(*tasks) == [[None], [None], [large], [large], [None]]
    assert wire.calls == [["0"], ["1", "2", "3", "4"], ["1", "4"]]


async def test_topic_that_fails_holds_up_no_other() -> None:
    """A queue a topic."""
    wire, calls = Wire(), list[str]()

    async def send(records: Sequence[ProducerRecord]) -> None:
        calls.append(records[0].topic)
        if records[0].topic == "stuck":
            await wire.go.wait()

    sender = OrderedSender(send)
    stuck, *_ = await begun(sender, record("a", "1", "stuck"))
    assert await sender.send([record("a", "2", "other")]) == [None]
    assert not stuck.done()
    wire.go.set()
    await stuck


async def test_memory_is_bounded() -> None:
    """Records wait outside for room, in their order, and an oversized one goes when nothing else is inside."""
    wire = Wire()
    sender = OrderedSender(wire.send, bytes_max=10)
    tasks = await begun(sender, record("a", "12345"), record("a", "x" * 50), record("a", "6"))
    assert wire.calls == [["12345"]]
    assert sender._bytes == 6
    wire.go.set()
    await asyncio.gather(*tasks)
    assert wire.calls == [["12345"], ["x" * 50], ["6"]]
    assert sender._bytes == 0


async def test_leaving_waits_for_what_is_on_its_way() -> None:
    """A publication nobody waits for any more is on the log when the block ends."""
    sent = list[str]()

    class Slow:
        system, peer = "kafka", None

        async def send(self, records: Sequence[ProducerRecord]) -> None:
            await asyncio.sleep(0.05)
            sent.extend((each.value or b"").decode() for each in records)

    async with Publisher(Slow()) as publisher:  # type: ignore[arg-type]
        task = asyncio.create_task(publisher.publish(Asked(who="ann", cup=1)))
        await settle()
        task.cancel()
    assert sent == ['{"who":"ann","cup":1}']


def test_threads_share_a_blocking_publisher(broker: str) -> None:
    """Each thread's own events in its order, at once; spans nest below what runs in the thread."""
    parent = trace.NonRecordingSpan(trace.SpanContext(7, 9, False, trace.TraceFlags(1)))
    seen: list[str | None] = []

    with BlockingPublisher(broker, topics={"asks": "shop.asks"}) as publisher:

        def work(who: str) -> None:
            for cup in range(20):
                publisher.publish(Asked(who=who, cup=cup), id=f"{who}-{cup}")

        threads = [threading.Thread(target=work, args=(who,)) for who in ("ann", "ben", "cid")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        references = publisher.publish_many(Asked(who="dan", cup=cup) for cup in range(1100))
        assert len({each.id for each in references}) == 1100
        with trace.use_span(parent):
            running = publisher._open()

            async def current() -> None:
                span = trace.get_current_span().get_span_context()
                seen.append(f"00-{span.trace_id:032x}-{span.span_id:016x}-01")

            running.call(current())
    context = parse(seen[0])
    assert context is not None
    assert (context.trace_id, context.span_id) == (7, 9)
    records = on_log(broker)
    assert {who: cups(records, who) for who in ("ann", "ben", "cid")} == {
        who: list(range(20)) for who in ("ann", "ben", "cid")
    }
    assert cups(records, "dan") == list(range(1100))


def test_blocking_publisher_says_what_is_wrong(broker: str) -> None:
    """Errors reach the thread that called; afterwards it goes on, and after close it opens again."""
    publisher = BlockingPublisher(broker, topics={"asks": "shop.asks"})
    try:
        with pytest.raises(DeclarationError):
            publisher.publish(Mixin(who="ann"))
        publisher.publish(Asked(who="ann", cup=1))
        publisher.close()
        publisher.publish(Asked(who="ann", cup=2))
    finally:
        publisher.close()
    assert cups(on_log(broker), "ann") == [1, 2]
    with pytest.raises(TypeError):
        BlockingPublisher(broker, topic_map={})
    with pytest.raises(ConfigurationError), BlockingPublisher("nowhere:1"):
        pass
    assert "choreo-publisher" not in [each.name for each in threading.enumerate()]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_blocking_publisher_survives_a_fork(broker: str) -> None:
    """As servers fork their workers: the child connects for itself."""
    publisher = BlockingPublisher(broker, topics={"asks": "shop.asks"})
    publisher.publish(Asked(who="ann", cup=1))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            publisher.publish(Asked(who="ann", cup=2))
            publisher.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    publisher.publish(Asked(who="ann", cup=3))
    publisher.close()
    assert cups(on_log(broker), "ann") == [1, 2, 3]
