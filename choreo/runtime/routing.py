"""From a record to its units: which handlers, which keys, or why none. Pure, so that `explain` tells the truth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from choreo import envelope as cloudevents
from choreo.binding import BoundHandler
from choreo.core.emission import (
    business_digest,
    fingerprint,
    is_derived,
    key_digest,
    queue_digest,
    replay_digest,
    retry_digest,
)
from choreo.core.messages import Delivery
from choreo.core.retry import Delayed
from choreo.core.units import Unit
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.event import Event
from choreo.ports import FlowMark
from choreo.record import Record, TopicPartition, last_headers
from choreo.runtime.replaying import DECODE, Replay, read_replay
from choreo.runtime.retrying import Retried, read_retried
from choreo.service import Service
from choreo.topic import Topic

PAYLOAD_BYTES_MAX = 1024 * 1024


@dataclass(slots=True)
class Work:
    """What the runtime needs to invoke a unit.

    `replay`: it was ordered by an operator. `retried`: it comes by a delay topic. `outside_key`: what the handler
    gives to whom it calls, if that is not the unit's own key. `flow`: what a watch has found by it.
    """

    record: Record
    envelope: Envelope | None
    event: Event | None
    bound: BoundHandler | None
    error: DecodeError | None = None
    span: object = None
    started_s: float = 0.0
    replay: Replay | None = None
    retried: Retried | None = None
    outside_key: bytes | None = None
    flow: FlowMark | None = None


@dataclass(slots=True)
class Routed:
    """What one service makes of one record: units of work, or the reason why there is none."""

    work: list[Work] = field(default_factory=list)
    skipped: str | None = None


class Router:
    """Decides for one service.

    Args:
        handlers: Bound handlers of the service.
        topic: Logical to actual topic name; a `Topic` says what the records there are.
        payload_bytes_max: A longer value is dead-lettered as `payload_too_large` without being read.
        replay_topic: Actual name of the topic of replays to this service, where it reads one.
        delay_topics: Actual names of its delay topics, with their delays in seconds.
        knows_keys: Whether the store knows a key from whichever partition its event comes.
    """

    def __init__(
        self,
        service: Service,
        handlers: Sequence[BoundHandler],
        *,
        topic: Callable[[str], str] = str,
        payload_bytes_max: int = PAYLOAD_BYTES_MAX,
        replay_topic: str | None = None,
        delay_topics: Mapping[str, int] | None = None,
        knows_keys: bool = True,
    ) -> None:
        self.replay_topic = replay_topic
        self.delay_topics = delay_topics or {}
        self._service = service
        self._knows_keys = knows_keys
        self._payload_bytes_max = payload_bytes_max
        actual = {topic(event.event_topic) for bound in handlers for event in bound.handler.events}
        self._foreign = {str(each): each for each in actual if isinstance(each, Topic)}
        self._partitions: dict[tuple[str, int], TopicPartition] = {}  # one object each, rather than one a record
        self._by_type: dict[str, list[BoundHandler]] = {}
        for bound in handlers:
            for type_, _ in bound.classes:
                known = self._by_type.setdefault(type_, [])
                if bound not in known:
                    known.append(bound)

    def delivery(self, record: Record) -> tuple[Delivery, str | None]:
        """The record as the core takes it in, and why it was skipped if it was."""
        routed = self.route(record)
        partition = self._partitions.get(record[:2])
        if partition is None:
            partition = self._partitions[record[:2]] = TopicPartition(record.topic, record.partition)
        units = [self._unit(partition, work) for work in routed.work]
        size = len(record.value) if record.value else 0
        delay_s = self.delay_topics.get(record.topic, 0)
        return Delivery(record.offset, size, record.timestamp_ms, units, delay_s), routed.skipped

    def route(self, record: Record) -> Routed:
        """Which handlers get the record; a record that cannot be read becomes one work with an `error`."""
        if record.topic in self.delay_topics:
            return self._retried(record)
        return self._replayed(record) if record.topic == self.replay_topic else self._handled(record)

    def own(self, topic: str) -> bool:
        """Whether nobody but this service reads it: replays and delayed retries."""
        return topic == self.replay_topic or topic in self.delay_topics

    def _retried(self, record: Record) -> Routed:
        """A delayed retry is for the one handler that failed; if that was ordered, it is so still."""
        retried = read_retried(record.headers)
        if retried is None:
            return Routed([Work(record, None, None, None, DecodeError("not_a_retry", "its headers name no retry"))])
        found = self._for_one(record, retried.handler, retried.original)
        for each in found:
            each.retried, each.replay = retried, read_replay(record.headers)
        return Routed(found)

    def _for_one(self, record: Record, handler: str, lay: Mapping[str, str]) -> list[Work]:
        """The work of one handler, or a dead letter that says it is gone."""
        found = self._handled(record, lay).work
        found = [each for each in found if each.bound is None or handler in (DECODE, each.bound.handler.name)]
        gone = f"{self._service.name} has no handler {handler!r} that takes it"
        return found or [Work(record, None, None, None, DecodeError("unknown_handler", gone))]

    def _replayed(self, record: Record) -> Routed:
        """A replay is for the one handler it names, or for all where none could be given its event."""
        replay = read_replay(record.headers)
        if replay is None:
            return Routed([Work(record, None, None, None, DecodeError("not_a_replay", "its headers name no replay"))])
        if replay.mode == "drop":
            return Routed(skipped="drop_mark")
        if replay.key == "event" and not self._knows_keys:
            refused = "the store knows the event's key in its own partition only; replay it with --mode force"
            return Routed([Work(record, None, None, None, DecodeError("replay_refused", refused), replay=replay)])
        found = self._for_one(record, replay.handler, replay.original)
        for each in found:
            each.replay = replay
        return Routed(found)

    def _handled(self, record: Record, lay: Mapping[str, str] | None = None) -> Routed:
        if self._foreign:
            try:
                found = self._from_foreign(record, lay)
            except DecodeError as error:
                return Routed([Work(record, None, None, None, error)])
            if found is None:
                return Routed(skipped="no_event")
            record = found
        value = record.value
        if value is None:
            return Routed(skipped="tombstone")
        envelope = cloudevents.usual(record.headers)
        type_ = self._type_of(record) if envelope is None else envelope.type
        if type_ and type_ not in self._by_type:
            return Routed(skipped="unhandled_type")
        try:
            if len(value) > self._payload_bytes_max:
                raise DecodeError(
                    "payload_too_large", f"the value has {len(value)} bytes, the limit is {self._payload_bytes_max}"
                )
            if envelope is not None:
                return Routed(self._decoded(record, envelope, value))
            envelope, data = cloudevents.read(record.headers, value)
            if envelope.type not in self._by_type:
                return Routed(skipped="unhandled_type")
            return Routed(self._decoded(record, envelope, data))
        except DecodeError as error:
            return Routed([Work(record, None, None, None, error)])

    def _from_foreign(self, record: Record, lay: Mapping[str, str] | None) -> Record | None:
        """What its topic makes of a record; one that is too large or has no value is left as it is."""
        topic = self._foreign.get(lay.get("topic", "") if lay else record.topic)
        if topic is None or record.value is None or len(record.value) > self._payload_bytes_max:
            return record
        return topic.incoming(record, lay)

    def _type_of(self, record: Record) -> str | None:
        """The type as far as it can be told without reading the event."""
        headers = last_headers(record.headers)
        return None if cloudevents.is_structured(headers) else cloudevents.event_type(headers)

    def key(self, work: Work) -> bytes:
        """The idempotency key of one unit of work: the event's, or the replay's, or that of a retry of either."""
        if work.replay is None and work.retried is None:
            return self._own_key(work)
        key = self._first_key(work)
        return key if work.retried is None else retry_digest(key, work.retried.number)

    def _first_key(self, work: Work) -> bytes:
        """The key of the first attempt: the event's, or the replay's."""
        if work.replay is None or work.replay.key == "event":
            return self._own_key(work)
        return replay_digest(self._service.name, _handler(work), work.replay.id)

    def _own_key(self, work: Work) -> bytes:
        service, bound, envelope = self._service.name, work.bound, work.envelope
        if bound is None or envelope is None:
            record = work.record
            coordinates = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp_ms}"
            return key_digest(service, DECODE, "", coordinates)
        field_ = bound.handler.idempotency_key
        if field_ is not None and work.event is not None:
            return business_digest(service, bound.handler.name, str(getattr(work.event, field_)))
        return key_digest(service, bound.handler.name, envelope.source, envelope.id)

    def _decoded(self, record: Record, envelope: Envelope, data: bytes) -> list[Work]:
        work: list[Work] = []
        events: dict[type[Event], Event] = {}
        for bound in self._by_type[envelope.type]:
            class_ = _class_for(bound.classes, envelope)
            if class_ is None:
                work.append(_old(record, envelope, data, bound))
                continue
            if class_ not in events:
                events[class_] = _validated(class_, data)
            work.append(Work(record, envelope, events[class_], bound))
        return work

    def _unit(self, partition: TopicPartition, work: Work) -> Unit:
        record, envelope, bound = work.record, work.envelope, work.bound
        lane: object = record.offset if record.key is None else record.key
        if work.replay is not None or work.retried is not None:
            # What failed may have been charged: the provider has to know it again.
            base, service = work.replay.base if work.replay else "", self._service.name
            work.outside_key = replay_digest(service, _handler(work), base) if base else self._own_key(work)
        retry = bound.handler.retry if bound else self._service.retry
        before = work.retried
        about = work.replay.parked if work.replay is not None and before is None else ""
        ordered = bound is not None and bound.handler.order is not None
        queue = None
        if record.key is not None and (ordered or about):
            queue = queue_digest(self._service.name, _handler(work), record.key)
        return Unit(
            partition,
            record.offset,
            lane,
            _handler(work),
            self.key(work),
            fingerprint(record.value or b""),
            correlation_id=envelope.correlationid if envelope else "",
            derived=bool(envelope and is_derived(envelope.id, envelope.causationid)),
            transacts=bool(bound and bound.transacts),
            retry=retry.in_place if isinstance(retry, Delayed) else retry,
            breaker=bound.handler.breaker if bound else None,
            attempts_before=before.attempts if before else 0,
            delayable=isinstance(retry, Delayed) and retry.next_s(before.number if before else 0) is not None,
            poison=about if about in ("drop", "closing") else work.error.reason if work.error else None,
            queue=queue,
            redriven=bool(about),
            work=work,
        )


def _handler(work: Work) -> str:
    """The handler's name; a replay that no handler can be given any more is still its handler's."""
    if work.bound is not None:
        return work.bound.handler.name
    sent = work.retried or work.replay
    return DECODE if sent is None else sent.handler


def _class_for(classes: Mapping[tuple[str, int], type[Event]], envelope: Envelope) -> type[Event] | None:
    """The class of the stated version; a producer that states none (not of choreo) gets the newest."""
    if envelope.version is not None:
        return classes.get((envelope.type, envelope.version))
    newest = max((version for type_, version in classes if type_ == envelope.type), default=None)
    return None if newest is None else classes[envelope.type, newest]


def _old(record: Record, envelope: Envelope, data: bytes, bound: BoundHandler) -> Work:
    """One handler's work on a version it has no class for: upcast to the newest class that can, or an error.

    The error is this handler's alone: another handler of the service may read the record well.
    """
    version = envelope.version
    assert version is not None
    able = [
        class_
        for (type_, _), class_ in bound.classes.items()
        if type_ == envelope.type and class_.upcasts_from(version)
    ]
    try:
        if not able:
            raise DecodeError(
                "unknown_version", f"{bound.handler.label} handles no version {version} of {envelope.type}"
            )
        class_ = max(able, key=lambda each: each.event_version)
        return Work(record, envelope, _validated(class_, data, version), bound)
    except DecodeError as error:
        return Work(record, envelope, None, bound, error)


def _validated(class_: type[Event], data: bytes, old_version: int | None = None) -> Event:
    """The event; of what a validator of the class's author lets out only the type is told, never the message."""
    try:
        return class_.from_payload(data) if old_version is None else class_.from_old_payload(data, old_version)
    except DecodeError:
        raise
    except Exception as error:
        what = f"{class_.event_type} v{class_.event_version}"
        raise DecodeError("invalid_data", f"a validator of {what} raised {type(error).__name__}") from None


def record_from_json(topic: str, text: bytes) -> Record:
    """A record as `explain` is given one: an object with key, value, headers, partition, offset; all optional.

    Raises:
        ValueError: It is no JSON object.
    """
    found = orjson.loads(text)
    if not isinstance(found, dict):
        raise ValueError("the file holds no JSON object")
    value = found.get("value")
    raw = value.encode() if isinstance(value, str) else None if value is None else orjson.dumps(value)
    key = found.get("key")
    return Record(
        topic,
        int(found.get("partition", 0)),
        int(found.get("offset", 0)),
        None if key is None else str(key).encode(),
        raw,
        tuple((name, str(text).encode()) for name, text in (found.get("headers") or {}).items()),
        int(found.get("timestamp_ms", 0)),
    )
