"""From a record to its handlers, or why it has none. Pure, so that `explain` tells the truth."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from choreo import envelope as cloudevents
from choreo.binding import BoundHandler
from choreo.core.units import Delivery
from choreo.envelope import Envelope
from choreo.errors import DecodeError
from choreo.event import Event
from choreo.record import Record, TopicPartition, last_headers
from choreo.runtime.keying import Units
from choreo.runtime.replaying import DECODE, read_replay
from choreo.runtime.retrying import read_retried
from choreo.runtime.work import Work
from choreo.service import Service
from choreo.topic import Topic

PAYLOAD_BYTES_MAX = 1024 * 1024


@dataclass(slots=True)
class Routed:
    """What one service makes of one record: units of work, or the reason why there is none."""

    work: list[Work] = field(default_factory=list)
    skipped: str | None = None


_Found = tuple[Sequence[Work], str | None]


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
        self.units = Units(service, handlers)
        self._service = service
        self._knows_keys = knows_keys
        self._payload_bytes_max = payload_bytes_max
        actual = {topic(event.event_topic) for bound in handlers for event in bound.handler.events}
        self._foreign = {str(each): each for each in actual if isinstance(each, Topic)}
        self._by_type: dict[str, list[BoundHandler]] = {}
        for bound in handlers:
            for type_, _ in bound.classes:
                known = self._by_type.setdefault(type_, [])
                if bound not in known:
                    known.append(bound)

    def deliveries(self, partition: TopicPartition, records: Iterable[Record]) -> tuple[list[Delivery], list[str]]:
        """Records of one partition as the core takes them in, and why of those that were skipped."""
        found: list[Delivery] = []
        skips: list[str] = []
        work_of, unit_of = self._reader(partition.topic), self.units.of
        delay_s = self.delay_topics.get(partition.topic, 0)
        for record in records:
            work, skipped = work_of(record)
            if skipped is not None:
                skips.append(skipped)
            _, _, offset, _, value, _, timestamp_ms = record
            units = [unit_of(partition, each) for each in work]
            found.append(Delivery(offset, len(value) if value else 0, timestamp_ms, units, delay_s))
        return found, skips

    def route(self, record: Record) -> Routed:
        """Which handlers get the record; a record that cannot be read becomes one work with an `error`."""
        work, skipped = self._reader(record.topic)(record)
        return Routed(list(work), skipped)

    def _reader(self, topic: str) -> Callable[[Record], _Found]:
        """What finds the work of the records of a topic."""
        if topic in self.delay_topics:
            return self._retried
        return self._replayed if topic == self.replay_topic else self._handled

    def own(self, topic: str) -> bool:
        """Whether nobody but this service reads it: replays and delayed retries."""
        return topic == self.replay_topic or topic in self.delay_topics

    def _retried(self, record: Record) -> _Found:
        """A delayed retry is for the one handler that failed; if that was ordered, it is so still."""
        retried = read_retried(record.headers)
        if retried is None:
            return _unread(record, DecodeError("not_a_retry", "its headers name no retry"))
        found = self._for_one(record, retried.handler, retried.original)
        for each in found:
            each.retried, each.replay = retried, read_replay(record.headers)
        return found, None

    def _for_one(self, record: Record, handler: str, lay: Mapping[str, str]) -> Sequence[Work]:
        """The work of one handler, or a dead letter that says it is gone."""
        found, _ = self._handled(record, lay)
        found = [each for each in found if each.bound is None or handler in (DECODE, each.bound.handler.name)]
        gone = f"{self._service.name} has no handler {handler!r} that takes it"
        return found or _unread(record, DecodeError("unknown_handler", gone))[0]

    def _replayed(self, record: Record) -> _Found:
        """A replay is for the one handler it names, or for all where none could be given its event."""
        replay = read_replay(record.headers)
        if replay is None:
            return _unread(record, DecodeError("not_a_replay", "its headers name no replay"))
        if replay.mode == "drop":
            return (), "drop_mark"
        if replay.key == "event" and not self._knows_keys:
            refused = "the store knows the event's key in its own partition only; replay it with --mode force"
            return [Work(record, None, None, None, DecodeError("replay_refused", refused), replay=replay)], None
        found = self._for_one(record, replay.handler, replay.original)
        for each in found:
            each.replay = replay
        return found, None

    def _handled(self, record: Record, lay: Mapping[str, str] | None = None) -> _Found:
        if self._foreign:
            try:
                found = self._from_foreign(record, lay)
            except DecodeError as error:
                return _unread(record, error)
            if found is None:
                return (), "no_event"
            record = found
        value = record.value
        if value is None:
            return (), "tombstone"
        envelope = cloudevents.usual(record.headers)
        type_ = self._type_of(record) if envelope is None else envelope.type
        if type_ and type_ not in self._by_type:
            return (), "unhandled_type"
        try:
            if len(value) > self._payload_bytes_max:
                raise DecodeError(
                    "payload_too_large", f"the value has {len(value)} bytes, the limit is {self._payload_bytes_max}"
                )
            if envelope is not None:
                return self._decoded(record, envelope, value), None
            envelope, data = cloudevents.read(record.headers, value)
            if envelope.type not in self._by_type:
                return (), "unhandled_type"
            return self._decoded(record, envelope, data), None
        except DecodeError as error:
            return _unread(record, error)

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

    def _decoded(self, record: Record, envelope: Envelope, data: bytes) -> list[Work]:
        work: list[Work] = []
        type_, version = envelope.type, envelope.version
        events: dict[type[Event], Event] = {}
        for bound in self._by_type[type_]:
            class_ = _newest(bound, type_) if version is None else bound.classes.get((type_, version))
            if class_ is None:
                work.append(_old(record, envelope, data, bound))
                continue
            event = events.get(class_)
            if event is None:
                event = events[class_] = _validated(class_, data)
            work.append(Work(record, envelope, event, bound))
        return work


def _unread(record: Record, error: DecodeError) -> _Found:
    """A record of which nothing is known but why."""
    return [Work(record, None, None, None, error)], None


def _newest(bound: BoundHandler, type_: str) -> type[Event]:
    """The class for a producer that states no version, as those that are not of choreo."""
    return bound.classes[type_, max(version for each, version in bound.classes if each == type_)]


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
