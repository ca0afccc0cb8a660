"""A flow's tree from records and from rows of a store."""

import io

from rich.console import Console

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.flow import joining
from choreo.flow.drawing import tree
from choreo.flow.joining import build
from choreo.flow.timeline import DeadLetter, Place, Timeline
from choreo.record import Record
from choreo.runtime import replaying, retrying


def record(
    id_: str,
    *,
    cause: str | None = None,
    flow: str = "f",
    offset: int = 0,
    source: str = "/shop",
    type_: str = "a.b",
    topic: str = "orders",
    at_ms: int = 0,
    extra: tuple[tuple[str, bytes], ...] = (),
) -> Record:
    """One event on the log."""
    headers = cloudevents.write(Envelope(id_, source, type_, correlationid=flow, causationid=cause))
    return Record(topic, 0, offset, b"k", b"{}", (*headers, *extra), at_ms)


def drawn(found: Timeline) -> str:
    """What a terminal shows."""
    console = Console(file=io.StringIO(), width=200)
    console.print(tree(found))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_events_hang_below_their_causes() -> None:
    """The tree follows causation ids whatever the order of the records, and leaves other flows out."""
    records = [
        record("3", cause="2", offset=2, at_ms=30),
        record("1", offset=0, at_ms=10),
        record("2", cause="1", offset=1, at_ms=20),
        record("4", cause="1", offset=3, at_ms=40),
        record("9", flow="other", offset=4),
    ]
    found = build(records, "f")
    assert [node.envelope.id for node in found.nodes()] == ["1", "2", "3", "4"]
    assert [child.envelope.id for child in found.roots[0].children] == ["2", "4"]


def test_event_without_its_cause_is_a_root() -> None:
    """What names a cause that is gone from the log is shown all the same."""
    assert [node.envelope.id for node in build([record("2", cause="1")], "f").roots] == ["2"]


def test_causes_in_a_circle_are_cut() -> None:
    """Forged ids that cause each other, or themselves, end neither in a loop nor in an event that is not shown."""
    records = [record("1", cause="2"), record("2", cause="1", offset=1), record("3", cause="3", offset=2)]
    assert sorted(node.envelope.id for node in build(records, "f").nodes()) == ["1", "2", "3"]


def test_deep_flow_is_built_and_drawn() -> None:
    """Two thousand causes in a row meet no limit of recursion."""
    records = [record(str(n), cause=str(n - 1) if n else None, offset=n, at_ms=n) for n in range(2000)]
    found = build(records, "f")
    assert len(list(found.nodes())) == 2000
    assert len(found.as_dict()["events"]) == 2000
    assert tree(found).children


def test_delayed_event_is_one_node_with_its_attempts() -> None:
    """What waits on a delay topic is no duplicate, and what was made of it there is told at the event."""
    again = record("1", topic="desk.retry.60", offset=4, at_ms=9, extra=((joining.RETRY_PREFIX + "number", b"1"),))
    row = {"handler": "desk.book", "partition": 0, "done": 1, "deliveries": 1, "duration_s": 0.0, "done_ms": 1}
    rows = [
        {**row, "topic": "orders", "offset": 0, "outcome": "delayed", "attempts": 1},
        {**row, "topic": "desk.retry.60", "offset": 4, "outcome": "handled", "attempts": 2},
    ]
    found = build([record("1"), again], "f", rows)
    (node,) = found.nodes()
    assert (node.repeats, node.retries) == ([], [Place("desk.retry.60", 0, 4)])
    assert [each.outcome for each in node.handlings] == ["delayed", "handled"]
    assert not found.unplaced
    said = drawn(found)
    assert "desk.book failed, to be tried again later" in said
    assert "duplicate" not in said


def test_repeated_event_is_one_node() -> None:
    """The same source and id a second time is a duplicate and no second event."""
    found = build([record("1"), record("1", offset=7, at_ms=5)], "f")
    assert [node.repeats for node in found.nodes()] == [[Place("orders", 0, 7)]]
    assert "a duplicate orders/0@7" in drawn(found)


def test_dead_letter_is_noted_at_its_event() -> None:
    """A dead letter keeps its event's id, and is shown there with whose it is and why."""
    names = ("service", "handler", "reason", "detail", "attempts")
    told = tuple((joining.DLQ_PREFIX + name, name.encode()) for name in names)
    found = build([record("1"), record("1", topic="pay.dlq", at_ms=5, extra=told)], "f")
    (node,) = found.nodes()
    assert node.dead_letters == [DeadLetter(Place("pay.dlq", 0, 0), *names)]
    assert node.repeats == []
    assert "dead letter of service.handler: detail" in drawn(found)


def test_dead_letter_outlives_its_event() -> None:
    """When the original is deleted from the log, its dead letter still shows it."""
    (node,) = build([record("1", extra=((joining.DLQ_PREFIX + "reason", b"rejected"),))], "f").nodes()
    assert node.place is None
    assert node.dead_letters[0].reason == "rejected"


def test_prefix_is_the_emitters() -> None:
    """The prefixes of headers of a dead letter, of a replay and of a retry are what the runtime writes."""
    assert joining.DLQ_PREFIX == replaying.DLQ_PREFIX
    assert joining.REPLAY_PREFIX == replaying.REPLAY_PREFIX
    assert joining.RETRY_PREFIX == retrying.RETRY_PREFIX


def test_replay_is_noted_at_its_event_and_is_no_duplicate() -> None:
    """It has its event's id; who handled it there is told by the store like any other."""
    order = replaying.Replay("r-1", "charge", "force", "replay", by="ada")
    sent = replaying.replay_record(order, "pay.replay", record("1"), 1)
    replay = record("1", topic="pay.replay", at_ms=5)._replace(headers=sent.headers)
    row = {"topic": "pay.replay", "partition": 0, "offset": 0, "done": 1, "deliveries": 1, "done_ms": 9}
    told = {**row, "handler": "pay.charge", "outcome": "handled", "attempts": 1, "duration_s": 0.25}
    found = build([record("1"), replay], "f", [told])
    (node,) = found.nodes()
    assert (node.repeats, found.unplaced) == ([], [])
    assert [each.handler for each in node.handlings] == ["pay.charge"]
    assert "replayed to charge by ada, forced pay.replay/0@0" in drawn(found)
    assert found.as_dict()["events"][0]["replays"][0]["mode"] == "force"


def test_history_says_who_handled_it() -> None:
    """Rows of the store are found by coordinates: handler, outcome, attempts and duration."""
    row = {"topic": "orders", "partition": 0, "offset": 0, "done": 1, "deliveries": 2, "done_ms": 5}
    done = {**row, "handler": "pay.charge", "outcome": "handled", "attempts": 3, "duration_s": 0.25}
    open_ = {**row, "handler": "pay.book", "done": 0, "outcome": "", "attempts": 0, "duration_s": 0}
    text = drawn(build([record("1")], "f", [done, open_]))
    assert "pay.charge handled 250.0 ms, 3 attempts, delivered 2 times" in text
    assert "pay.book not finished" in text


def test_markup_and_control_characters_are_not_obeyed() -> None:
    """Names that a stranger chose can neither colour the terminal nor move its cursor."""
    text = drawn(build([record("1", source="/[red]x[/]\x1b[2J")], "f"))
    assert "/[red]x[/]?[2J" in text


def test_records_that_are_no_events_are_passed_over() -> None:
    """Tombstones and plain records do not disturb."""
    plain = Record("orders", 0, 1, None, b"x", (), 0)
    assert list(build([plain, plain._replace(value=None)], "f").nodes()) == []
