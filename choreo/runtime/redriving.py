"""What an operator does about dead letters and history: read them, and decide what can be replayed."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from choreo import envelope as cloudevents
from choreo.core.emission import replay_identity
from choreo.ports import Transport
from choreo.record import Record
from choreo.runtime.letters import Fate, Letter, fates, letters_of
from choreo.runtime.ordering import Operator, Orders
from choreo.runtime.replaying import DECODE, Mode, Replay, event_identity, origin, read_replay, replay_record
from choreo.runtime.routing import Router
from choreo.service import Service

CLOCKS_APART_MS = 600_000
"""An order may bear an earlier time than the dead letter it is about, of another machine's clock."""
OPEN = Fate()
NEVER_GIVEN = ("not_a_replay", "replay_refused")
"""Reasons of dead letters that no replay can mend: what they say is true of the order, not of the event."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Dead letters of some services, oldest first, and what has become of them.

    Attributes:
        spans: For each partition that held any record: records read, first and last offset.
        missing: Topics that are not there.
        sent: Ids of replays that are on a replay topic.
    """

    letters: Sequence[Letter]
    fates: Mapping[str, Fate]
    spans: Mapping[str, tuple[int, int, int]]
    missing: Sequence[str]
    sent: frozenset[str]

    def fate(self, letter: Letter) -> Fate:
        """What has become of one."""
        return self.fates.get(letter.identity, OPEN)


async def read(
    transport: Transport, services: Sequence[Service], topic: Callable[[str], str], *, since_ms: int
) -> Reading:
    """Read the dead letters put aside since `since_ms`, and the orders about them, to the ends as they are now."""
    letter_topics = [topic(service.dlq_topic) for service in services]
    order_topics = [topic(service.replay_topic) for service in services]
    there = await transport.topics([*letter_topics, *order_topics])
    # Orders first: one given meanwhile is about a letter that is then read, and never the other way round.
    ordered = await _scan(transport, order_topics, there, max(0, since_ms - CLOCKS_APART_MS))
    records = await _scan(transport, letter_topics, there, since_ms)
    letters = letters_of(records)
    spans: dict[str, tuple[int, int, int]] = {}
    for record in records:
        name = f"{record.topic}/{record.partition}"
        count, first, last = spans.get(name, (0, record.offset, record.offset))
        spans[name] = count + 1, min(first, record.offset), max(last, record.offset)
    replays = [replay for record in ordered if (replay := read_replay(record.headers)) is not None]
    missing = [name for name in letter_topics if name not in there]
    sent = frozenset(replay.id for replay in replays if replay.mode != "drop")
    return Reading(letters, fates(letters, ordered), spans, missing, sent)


async def _scan(
    transport: Transport, topics: Sequence[str], there: Collection[str], since_ms: int
) -> Sequence[Record]:
    names = [name for name in topics if name in there]
    return await transport.scan(names, since_ms=since_ms) if names else ()


class Redrive:
    """Makes the orders of one operator for the dead letters and events of some services.

    Args:
        topic: Logical to actual topic name.
        partitions: Of each service's replay topic.
    """

    def __init__(
        self,
        services: Mapping[str, Service],
        topic: Callable[[str], str],
        partitions: Mapping[str, int],
        operator: Operator,
        now_s: float,
    ) -> None:
        self._services = services
        self._topic = topic
        self._partitions = partitions
        self._operator = operator
        self._time = cloudevents.rfc3339(now_s)

    def letters(self, reading: Reading, letters: Sequence[Letter], mode: Mode) -> Orders:
        """Orders to replay dead letters, or to mark them as dropped, in their order."""
        orders, seen = Orders(), set[str]()
        for letter in letters:
            if letter.identity in seen:
                orders.left_out["a second copy of one of the others"] += 1
                continue
            seen.add(letter.identity)
            replay = self._of_letter(letter, mode)
            why = _done(reading, letter, replay)
            if why:
                orders.left_out[why] += 1
            elif mode != "drop" and (cannot := self._cannot(letter)):
                orders.impossible[cannot] += 1
            else:
                self._add(orders, letter.service, replay, letter.record)
        return orders

    def events(self, service: str, handler: str, router: Router, records: Sequence[Record], mode: Mode) -> Orders:
        """Orders to handle events of the history by one handler, in their order."""
        orders = Orders()
        for record in records:
            routed = router.route(record)
            mine = [each for each in routed.work if each.bound is not None and each.bound.handler.name == handler]
            if routed.work and not mine and any(each.error for each in routed.work):
                orders.left_out["it cannot be read"] += 1
            elif not mine:
                orders.left_out["another type, or no event"] += 1
            elif mine[0].error is not None:
                orders.left_out[f"{mine[0].error.reason}"] += 1
            else:
                self._add(orders, service, self._of_event(service, handler, record, mode), record)
        return orders

    def _add(self, orders: Orders, service: str, replay: Replay, record: Record) -> None:
        topic = self._topic(self._services[service].replay_topic)
        orders.records.append(replay_record(replay, topic, record, self._partitions[service]))
        orders.handlers[f"{service}.{replay.handler}"] += 1

    def _of_letter(self, letter: Letter, mode: Mode) -> Replay:
        id_ = replay_identity(self._operator.run, letter.identity) if mode == "force" else letter.identity
        # Another payload under the id of an event that was handled is another event, for its emits too.
        new = mode == "force" or letter.reason == "id_collision"
        return Replay(
            id_,
            letter.handler,
            mode,
            "replay",
            base=id_ if new else letter.told.get("replay-base", ""),
            of=letter.identity,
            letter=letter.id,
            by=self._operator.by,
            time=self._time,
            note=self._operator.note,
            original=letter.original,
        )

    def _of_event(self, service: str, handler: str, record: Record, mode: Mode) -> Replay:
        original = origin(record)
        identity = event_identity(service, handler, original)
        id_ = replay_identity(self._operator.run, identity) if mode == "force" else identity
        return Replay(
            id_,
            handler,
            mode,
            "replay" if mode == "force" else "event",
            base=id_ if mode == "force" else "",
            by=self._operator.by,
            time=self._time,
            note=self._operator.note,
            original=original,
        )

    def _cannot(self, letter: Letter) -> str:
        """Why a dead letter cannot be replayed; empty if it can."""
        service = self._services[letter.service]
        if letter.truncated:
            return (
                "not all of the event is in the dead letter, which was too large: replay the original, if it is "
                "still there, with `choreo replay --mode force`"
            )
        if letter.reason in NEVER_GIVEN:
            return "it was no event but a replay that was refused: see its detail, order what was meant, and drop it"
        if letter.handler != DECODE and letter.handler not in service.handlers:
            return f"{letter.service} has no handler {letter.handler!r} any more"
        return ""


def _done(reading: Reading, letter: Letter, replay: Replay) -> str:
    """Why nothing is to be done about a dead letter; empty if something is."""
    fate = reading.fate(letter)
    if replay.mode == "drop":
        return "dropped already" if fate.state == "dropped" else ""
    if replay.mode == "if-not-done" and fate.state == "dropped":
        return "dropped: --mode force replays it all the same"
    if replay.mode == "if-not-done" and fate.state != "open":
        return "replayed already"
    return "replayed in this run already" if replay.id in reading.sent else ""
