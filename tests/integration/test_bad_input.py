"""What no producer should send: each to its outcome on both transports, and the service goes on."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from pydantic import field_validator

from choreo import App, Context, Event, Service
from choreo.opening import open_transport
from choreo.ports import TopicSpec, Transport
from choreo.record import Header, ProducerRecord, Record
from choreo.running import Running
from choreo.runtime.emitting import TRUNCATED, original, truncated
from choreo.runtime.replaying import DLQ_PREFIX, REPLAY_PREFIX
from choreo.runtime.retrying import RETRY_PREFIX
from tests.integration.hostile import LOST, MEGABYTE, SAID_BY, SECRET, SENT, Hostile, everything, good, headers

BYTES_MAX = "8388608"


class Parcel(Event):
    """What both events have."""

    name: str
    note: str = ""
    count: int = 0
    weight: float = 0.0
    anything: Any = None

    @field_validator("name")
    @classmethod
    def _explodes(cls, name: str) -> str:
        if name == "explode":
            raise KeyError(f"not a ValueError, and it quotes {SECRET}")
        return name


class ParcelSent(Parcel, type=SENT, version=1, topic="parcels", key="name"):
    """Comes through the hostile topic."""


class ParcelLost(Parcel, type=LOST, version=1, topic="parcels", key="name"):
    """Comes through the same topic."""


class ParcelNoted(Event, type="parcel.noted", version=1, topic="notes", key="name"):
    """Follows from each that was handled."""

    name: str


class Desk(NamedTuple):
    """One service, its app and the names of the parcels it has handled."""

    app: App
    service: Service
    handled: list[str]

    @property
    def dlq(self) -> str:
        return self.app.topic(self.service.dlq_topic)

    @property
    def parcels(self) -> str:
        return self.app.topic("parcels")


def make_desk() -> Desk:
    """Topics and a group of its own, since a Kafka may be shared."""
    unique = uuid4().hex[:12]
    service, handled = Service(f"desk-{unique}"), list[str]()

    @service.handler(ParcelSent)
    async def note(sent: ParcelSent, context: Context) -> ParcelNoted:
        handled.append(sent.name)
        return ParcelNoted(name=sent.name)

    @service.handler(ParcelLost, idempotency_key="name")
    async def search(lost: ParcelLost) -> ParcelNoted:
        handled.append(lost.name)
        return ParcelNoted(name=lost.name)

    topics = {"parcels": f"parcels-{unique}", "notes": f"notes-{unique}"}
    return Desk(App(service, topics=topics, propagate=["tenant"]), service, handled)


@asynccontextmanager
async def running(
    desk: Desk, broker: str, tmp_path: Path, *, dlq_bytes_max: str = BYTES_MAX
) -> AsyncIterator[Running]:
    """The desk at work, on topics that take records of the given size."""
    transport = open_transport(broker)
    await transport.open()
    sizes = {desk.parcels: BYTES_MAX, desk.app.topic("notes"): BYTES_MAX, desk.dlq: dlq_bytes_max}
    specs = [TopicSpec(name, 2, config=(("max.message.bytes", size),)) for name, size in sizes.items()]
    await transport.create_topics(specs)
    await transport.close()
    store = None if broker.startswith("embedded") else f"sqlite:{tmp_path / 'store.db'}"
    async with desk.app.running(broker=broker, store=store) as found:
        yield found


async def finished(found: Running, desk: Desk, count: int) -> None:
    """Wait until so many records have come to an end, or the service has died."""
    counts = found.workers[desk.service.name].counts
    died = asyncio.ensure_future(found.failed())
    try:
        async with asyncio.timeout(25):
            while sum(counts[each] for each in ("handled", "dead_letters", "skipped", "duplicates")) < count:
                assert not died.done(), died.exception()
                await asyncio.sleep(0.02)
    finally:
        died.cancel()


def said_by(record: Record) -> str:
    """The name of the hostile record, as its own header says it."""
    return next(((value or b"").decode() for name, value in record.headers if name == SAID_BY), "")


async def by_name(transport: Transport, topic: str) -> dict[str, Record]:
    """Records of a topic by name, none of them twice."""
    records = await transport.scan([topic], since_ms=0)
    found = {said_by(record): record for record in records}
    assert len(found) == len(records)
    return found


def of_the_sender(record: Record) -> list[Header]:
    """Headers that are neither choreo's own nor forged to look so, nor replaced by choreo's."""
    own = DLQ_PREFIX, REPLAY_PREFIX, RETRY_PREFIX, "trace"
    return [(name, value) for name, value in record.headers if not name.startswith(own)]


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Broker URL of each transport."""
    if request.param == "kafka":
        return f"kafka://{request.getfixturevalue('kafka')}"
    return f"embedded:{tmp_path / 'log.db'}"


async def test_bad_input(broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every hostile record to its outcome, good ones between and after them, in one run."""
    caplog.set_level(logging.DEBUG)
    desk, table = make_desk(), everything()
    async with running(desk, broker, tmp_path) as found:
        for each in table:  # one by one: half a gigabyte of headers is no batch
            await found.transport.send([ProducerRecord(desk.parcels, each.key, each.value, each.headers)])
        await finished(found, desk, len(table))
        counts = dict(found.workers[desk.service.name].counts)
        arrived = await by_name(found.transport, desk.parcels)
        letters = await by_name(found.transport, desk.dlq)
        notes = await found.transport.scan([desk.app.topic("notes")], since_ms=0)

    outcomes = {each.name: each.outcome for each in table}
    assert len(outcomes) == len(table)
    dead = {name: outcome for name, outcome in outcomes.items() if outcome not in ("handled", "skipped")}
    handled = sorted(name for name, outcome in outcomes.items() if outcome == "handled")
    assert {name: original(letter)["reason"] for name, letter in letters.items()} == dead
    assert sorted(desk.handled) == handled
    assert desk.handled[-1] == "the last good one"
    assert counts["skipped"] == sum(outcome == "skipped" for outcome in outcomes.values())
    assert (counts["dead_letters"], counts["handled"]) == (len(dead), len(handled))
    assert counts["skipped_unhandled_type"] == counts["skipped"] - counts["skipped_tombstone"]

    for name, letter in letters.items():
        check_letter(desk, arrived[name], letter)
    check_notes(notes, handled)
    check_log(caplog.records, [arrived[name] for name in dead])


def check_letter(desk: Desk, record: Record, letter: Record) -> None:
    """It holds the original byte for byte, its coordinates, and nothing of the payload beside that."""
    told = original(letter)
    assert (letter.key, letter.value) == (record.key, record.value)
    assert of_the_sender(letter) == of_the_sender(record)
    assert {name: told[name] for name in told if name.startswith("original-")} == {
        "original-topic": record.topic,
        "original-partition": str(record.partition),
        "original-offset": str(record.offset),
        "original-timestamp-ms": str(record.timestamp_ms),
    }
    assert told["service"] == desk.service.name
    assert told["attempts"] == "0"
    assert set(told) & {"truncated", "of-my-own"} == set()
    assert told["reason"] in told["detail"]
    own = [value for name, value in letter.headers if name.startswith(DLQ_PREFIX)]
    assert len(own) == len(told)
    assert SECRET.encode() not in b"".join(value or b"" for value in own)


def check_notes(notes: Sequence[Record], handled: list[str]) -> None:
    """What follows from a handled record carries nothing that grew out of bounds."""
    assert len(notes) == len(handled)
    for note in notes:
        assert sum(len(name) + len(value or b"") for name, value in note.headers) < 4096, note.headers
        assert "ce_tenant" not in dict(note.headers)


def check_log(records: list[logging.LogRecord], dead: list[Record]) -> None:
    """One line for each dead letter, no stack, nothing of the payload; and nothing else worth a warning."""
    lines = []
    for record in records:
        message = record.getMessage()
        assert SECRET not in message + str(record.args) + str(record.exc_text), record.name
        if record.levelno >= logging.WARNING and not record.name.startswith("aiokafka"):  # its own start-up troubles
            assert (record.name, record.exc_info) == ("choreo.worker", None), message
            assert "\n" not in message
            lines.append(message)
    places = [f"dead letter: {record.topic}/{record.partition}@{record.offset} " for record in dead]
    assert sorted(line[: line.index(" for ") + 1] for line in lines) == sorted(places)


@pytest.mark.parametrize(("bytes_max", "kept"), [(200_000, 65_536), (8_192, 0)])
async def test_a_dead_letter_too_large_for_its_topic_is_cut(
    kafka: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, bytes_max: int, kept: int
) -> None:
    """Its coordinates are kept, its value as far as it fits, and the service goes on."""
    desk = make_desk()
    many: tuple[Header, ...] = tuple((f"h{n}", b"x" * 2_000) for n in range(100))
    huge = Hostile("huge", "not_json", b"{" * (MEGABYTE - 1), headers("huge", *many))
    small = Hostile("small", "not_json", b"{", headers("small"))
    async with running(desk, f"kafka://{kafka}", tmp_path, dlq_bytes_max=str(bytes_max)) as found:
        table = [good("first"), small, huge, good("last")]
        records = [ProducerRecord(desk.parcels, each.key, each.value, each.headers) for each in table]
        await found.transport.send(records)
        await finished(found, desk, len(table))
        arrived = await by_name(found.transport, desk.parcels)
        letters = await found.transport.scan([desk.dlq], since_ms=0)

    assert desk.handled == ["first", "last"]
    # What went out beside it may be there again: a dead letter is delivered at least once.
    by_offset = {original(letter)["original-offset"]: letter for letter in letters}
    assert len(by_offset) == 2
    cut, whole = by_offset[str(arrived["huge"].offset)], by_offset[str(arrived["small"].offset)]
    check_letter(desk, arrived["small"], whole)
    told = original(cut)
    assert (told["reason"], told["original-topic"]) == ("not_json", desk.parcels)
    assert told["original-partition"] == str(arrived["huge"].partition)
    assert int(told["truncated"]) > MEGABYTE + 100 * 2_000
    assert cut.value == b"{" * kept
    assert (cut.key is None, said_by(cut)) == ((True, "") if not kept else (False, "huge"))
    refusals = [record for record in caplog.records if "larger than the topic takes" in record.getMessage()]
    assert len(refusals) == (1 if kept else 2)
    assert not any(record.exc_info for record in caplog.records)


def test_only_dead_letters_are_cut() -> None:
    """An emit is left alone, however large; and so is a dead letter of which nothing is left to cut."""
    emit = ProducerRecord("notes", b"k", b"x" * MEGABYTE, (("ce_id", b"1"), ("traceparent", b"t")))
    assert truncated(emit) is None
    letter = emit._replace(headers=(*emit.headers, (DLQ_PREFIX + "reason", b"not_json")))
    once = truncated(letter)
    assert once is not None
    assert {"ce_id", "traceparent", TRUNCATED} < set(dict(once.headers))
    twice = truncated(once)
    assert twice is not None
    assert (twice.key, twice.value) == (None, b"")
    assert [name for name, _ in twice.headers] == ["traceparent", DLQ_PREFIX + "reason", TRUNCATED]
    assert truncated(twice) is None
