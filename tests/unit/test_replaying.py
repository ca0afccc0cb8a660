"""Replays as records: what they keep, whom they are for, under which key they are handled."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from choreo import App, Context, Event, Service
from choreo.core.emission import key_digest, replay_digest
from choreo.core.units import Delivery
from choreo.envelope import Envelope, write
from choreo.record import Header, Record, TopicPartition
from choreo.runtime.letters import Fate, Filter, fates, letters_of, place
from choreo.runtime.replaying import DECODE, Key, Replay, event_identity, read_replay, replay_record
from choreo.runtime.routing import Router

ORIGINAL = {"topic": "asks", "partition": "2", "offset": "7", "timestamp-ms": "1000"}


class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str


class Spilt(Event, type="tea.spilt", version=1, topic="asks", key="who"):
    who: str


def kitchen(*, knows_keys: bool = True) -> Router:
    """A service with two handlers of one event and one of another, reading replays."""
    service = Service("kitchen")

    @service.handler(Asked)
    def pour(asked: Asked, ctx: Context) -> None: ...
    @service.handler(Asked)
    def count(asked: Asked) -> None: ...
    @service.handler(Spilt)
    def wipe(spilt: Spilt) -> None: ...

    return Router(service, App(service).bound("kitchen"), replay_topic="kitchen.replay", knows_keys=knows_keys)


def letter(*headers: Header, key: bytes | None = b"Ada", value: bytes = b'{"who":"Ada"}', offset: int = 0) -> Record:
    """A dead letter of `kitchen.pour`, with more headers."""
    told = {"reason": "handler_failed", "service": "kitchen", "handler": "pour"}
    told |= {f"original-{name}": text for name, text in ORIGINAL.items()}
    mine = tuple((f"choreo-dlq-{name}", text.encode()) for name, text in told.items())
    event = write(Envelope("e-1", "/guests", "tea.asked", version=1, correlationid="e-1"))
    return Record("kitchen.dlq", 1, offset, key, value, (*event, *headers, *mine), 2000)


def ordered(record: Record, handler: str = "pour", key: Key = "replay", id_: str = "r-1") -> Record:
    """It as it lies on the replay topic."""
    order = Replay(id_, handler, "if-not-done", key, original=ORIGINAL)
    return _laid(order, record)


def _laid(order: Replay, record: Record) -> Record:
    sent = replay_record(order, "kitchen.replay", record, 1)
    return Record(sent.topic, 0, 0, sent.key, sent.value, sent.headers, 3000)


def delivered(router: Router, record: Record) -> tuple[list[Delivery], list[str]]:
    """What the core is given, and why it was skipped."""
    return router.deliveries(TopicPartition(record.topic, record.partition), [record])


def units(router: Router, record: Record) -> dict[str, tuple[bytes, str | None]]:
    """Handler to key and reason it is dead-lettered for."""
    return {unit.handler: (unit.digest, unit.poison) for unit in delivered(router, record)[0][0].units}


def test_replay_keeps_the_event_byte_for_byte() -> None:
    """Key, value and headers, null and foreign ones too; what the dead letter said of itself is gone."""
    odd: tuple[Header, ...] = (("x-null", None), ("x-\udcff", b"\xff"), ("choreo-replay-id", b"forged"))
    found = letter(*odd, key=b"\xff", value=b"\x00{")
    replay = Replay(
        "r-1", "pour", "if-not-done", "replay", "r-0", "of", "kitchen.dlq/1@0", "ada@desk", "now", "x", ORIGINAL
    )
    sent = replay_record(replay, "kitchen.replay", found, 4)
    assert (sent.key, sent.value) == (b"\xff", b"\x00{")
    kept = [header for header in sent.headers if not header[0].startswith("choreo-")]
    assert kept == [header for header in found.headers if not header[0].startswith("choreo-")]
    assert not any(name.startswith("choreo-dlq-") for name, _ in sent.headers)
    assert read_replay(sent.headers) == replay


def test_replay_without_a_key_has_its_partition_from_its_id() -> None:
    """Repeated, it comes to the same one, where a changelog knows it; with a key the key decides."""
    order = Replay("r-1", "pour", "if-not-done", "replay")
    chosen = {replay_record(order, "t", letter(key=None), 4).partition for _ in range(9)}
    assert len(chosen) == 1
    others = {replay_record(replace(order, id=f"r-{n}"), "t", letter(key=None), 4).partition for n in range(50)}
    assert others == {0, 1, 2, 3}
    assert replay_record(order, "t", letter(), 4).partition is None


def test_replay_is_for_its_one_handler_under_a_key_of_its_own() -> None:
    """The event's own key is done with the dead letter and would swallow it."""
    found = units(kitchen(), ordered(letter()))
    assert found == {"pour": (replay_digest("kitchen", "pour", "r-1"), None)}
    assert units(kitchen(), ordered(letter(), key="event")) == {
        "pour": (key_digest("kitchen", "pour", "/guests", "e-1"), None)
    }


def test_replay_of_what_could_not_be_read_is_for_every_handler_of_the_service() -> None:
    """None of them was given it, since nobody knew whose it was; each has a key of its own."""
    found = units(kitchen(), ordered(letter(), handler=DECODE))
    assert found == {name: (replay_digest("kitchen", name, "r-1"), None) for name in ("pour", "count")}


def test_replay_that_still_cannot_be_read_is_its_handlers_again() -> None:
    """Not a dead letter of all: the next replay would bother the others."""
    digest = replay_digest("kitchen", "pour", "r-1")
    assert units(kitchen(), ordered(letter(value=b"{"))) == {"pour": (digest, "not_json")}


@pytest.mark.parametrize(
    ("handler", "value", "reason"),
    [("gone", b'{"who":"Ada"}', "unknown_handler"), ("wipe", b'{"who":"Ada"}', "unknown_handler")],
)
def test_replay_for_a_handler_that_does_not_take_it_is_a_dead_letter(handler: str, value: bytes, reason: str) -> None:
    """Renamed since, or subscribed to something else: it must not vanish."""
    found = units(kitchen(), ordered(letter(value=value), handler=handler))
    assert [(name, poison) for name, (_, poison) in found.items()] == [(handler, reason)]


def test_mark_of_a_dropped_letter_is_handled_by_nobody() -> None:
    """It is there for `choreo dlq list`."""
    router = kitchen()
    mark = _laid(Replay("r-1", "pour", "drop", "replay", of="x"), letter())
    assert mark.value is None
    assert delivered(router, mark)[1] == ["drop_mark"]
    assert units(router, mark) == {}


def _without(record: Record, name: str) -> Record:
    return record._replace(headers=tuple(header for header in record.headers if header[0] != name))


def _with(record: Record, name: str, value: bytes) -> Record:
    return record._replace(headers=(*_without(record, name).headers, (name, value)))


@pytest.mark.parametrize(
    "broken",
    [
        lambda record: _without(record, "choreo-replay-id"),
        lambda record: _without(record, "choreo-replay-handler"),
        lambda record: _with(record, "choreo-replay-mode", b"twice"),
        lambda record: _with(record, "choreo-replay-key", b"\xff"),
    ],
)
def test_record_that_is_no_replay_is_a_dead_letter(broken: Callable[[Record], Record]) -> None:
    """Who writes to the topic by hand is told so, and no handler guesses."""
    ((_, poison),) = units(kitchen(), broken(ordered(letter()))).values()
    assert poison == "not_a_replay"


def test_replay_by_the_events_own_key_is_refused_where_keys_are_known_in_part() -> None:
    """A changelog knows them in the event's own partition; another one would handle it again."""
    ((_, poison),) = units(kitchen(knows_keys=False), ordered(letter(), key="event")).values()
    assert poison == "replay_refused"
    assert units(kitchen(knows_keys=False), ordered(letter()))["pour"][1] is None


def test_replay_headers_elsewhere_mean_nothing() -> None:
    """An event of another topic with forged ones is handled by all, under its own key."""
    forged = ordered(letter())._replace(topic="asks")
    names = ("pour", "count")
    assert units(kitchen(), forged) == {name: (key_digest("kitchen", name, "/guests", "e-1"), None) for name in names}


def test_identity_is_that_of_the_failure() -> None:
    """Two copies of a dead letter have one; another handler, place, or a replay that failed has another."""
    first, copy = letters_of([letter(), letter(offset=5)])
    assert first.identity == copy.identity
    others = [
        event_identity("kitchen", "count", ORIGINAL),
        event_identity("pantry", "pour", ORIGINAL),
        event_identity("kitchen", "pour", ORIGINAL | {"offset": "8"}),
        event_identity("kitchen", "pour", ORIGINAL | {"timestamp-ms": "1001"}),
        event_identity("kitchen", "pour", ORIGINAL, "r-1"),
    ]
    assert len({first.identity, *others}) == 6


def test_letters_are_in_order_of_time_and_each_partition_in_its_own() -> None:
    """A clock that was set back reverses no key; records that are no dead letters are left out."""
    late = letter(offset=1)._replace(timestamp_ms=1500)  # behind one of 2000
    other = letter()._replace(partition=0, timestamp_ms=1700)
    foreign = Record("kitchen.dlq", 0, 9, None, b"x", (), 1)
    assert [each.id for each in letters_of([late, foreign, letter(), other])] == [
        "kitchen.dlq/0@0",
        "kitchen.dlq/1@0",
        "kitchen.dlq/1@1",
    ]


def test_fate_is_what_was_ordered_last() -> None:
    """Open, replayed, failed again as which, dropped."""
    first, failed = letters_of([letter(), letter(("choreo-dlq-replay-id", b"r-1"), offset=1)])
    replayed = ordered(letter())
    order = Replay("r-1", "pour", "if-not-done", "replay", of=first.identity, by="ada")
    replayed = _laid(order, letter())
    dropped = _laid(replace(order, mode="drop"), letter())
    assert fates([first], []) == {}
    assert fates([first], [replayed])[first.identity].state == "replayed"
    found = fates([first, failed], [replayed])[first.identity]
    assert (found.state, found.failed_as, found.orders) == (
        "failed_again",
        "kitchen.dlq/1@1",
        (replace(order, original={name: "" for name in ORIGINAL}),),
    )
    assert fates([first, failed], [replayed, dropped])[first.identity].state == "dropped"


@pytest.mark.parametrize(
    ("wanted", "taken"),
    [
        (Filter(), True),
        (Filter(ids=frozenset({"kitchen.dlq/1@0"})), True),
        (Filter(ids=frozenset({"kitchen.dlq/1@1"})), False),
        (Filter(handler="pour"), True),
        (Filter(handler="kitchen.*"), True),
        (Filter(handler="count"), False),
        (Filter(reason="handler_failed"), True),
        (Filter(reason="rejected"), False),
        (Filter(type="tea.*"), True),
        (Filter(type="cake.*"), False),
        (Filter(key="Ada"), True),
        (Filter(key="Bob"), False),
        (Filter(state="open"), True),
        (Filter(state="dropped"), False),
        (Filter(since_ms=2000), True),
        (Filter(since_ms=2001), False),
        (Filter(until_ms=2001), True),
        (Filter(until_ms=2000), False),
    ],
)
def test_filter_takes_what_is_meant(wanted: Filter, taken: bool) -> None:
    """Each by itself."""
    (found,) = letters_of([letter()])
    assert wanted.takes(found, Fate()) is taken
    assert place(found.record) == found.id
