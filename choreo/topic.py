"""Topics as others write and read them: plain JSON, or whatever it is, beside a choreo that keeps CloudEvents.

A record read through a `Topic` becomes the record that choreo would have found, so that retries, dead letters and
replays of it are those of any other event. What is written through one has the headers of its event (`ce_id`,
`ce_source`, ...) but for `ce_specversion`: its value is not the event's data, and no CloudEvents SDK may take it so.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.errors import DeclarationError, DecodeError
from choreo.exact import dumps_exactly, loads_exactly
from choreo.record import Header, Headers, ProducerRecord, Record, last_headers

_MARK = "ce_specversion"


class Incoming:
    """A record as `Topic(read=, id=, correlation=)` are given it.

    Attributes:
        topic, partition, offset, timestamp_ms: Where it lay first, also where it comes again by a replay.
        key: Text, undecodable bytes as `\\xNN`; None if it has none.
        value: Bytes as they are.
        headers: Text by name; of duplicates the last one, and none that is null.
    """

    def __init__(self, record: Record, lay: Mapping[str, str] | None) -> None:
        self.topic = lay["topic"] if lay else record.topic
        self.partition = int(lay["partition"] if lay else record.partition)
        self.offset = int(lay["offset"] if lay else record.offset)
        self.timestamp_ms = int(lay["timestamp-ms"] if lay else record.timestamp_ms)
        self.key = None if record.key is None else record.key.decode(errors="backslashreplace")
        self.value = record.value or b""
        found = last_headers(record.headers)
        self.headers = {name: raw.decode(errors="backslashreplace") for name, raw in found.items() if raw is not None}

    @cached_property
    def json(self) -> dict[str, Any]:
        """The value as a JSON object; numbers with a fraction are Decimal, exactly as they were written.

        Raises:
            DecodeError: It is none: `not_json`, `invalid_data`.
        """
        return loads_exactly(self.value)


class Outgoing:
    """An event as `Topic(write=)` is given it; `envelope` has what else is known of it."""

    def __init__(self, envelope: Envelope, payload: bytes) -> None:
        self.envelope = envelope
        self._payload = payload

    @property
    def id(self) -> str:
        """CloudEvents `id`: give it to readers who can drop duplicates by it."""
        return self.envelope.id

    @property
    def type(self) -> str:
        """CloudEvents `type`."""
        return self.envelope.type

    @property
    def data(self) -> dict[str, Any]:
        """The event's fields as JSON has them."""
        return loads_exactly(self._payload)


Read = Callable[[Incoming], tuple[str, Mapping[str, Any] | bytes] | None]
Write = Callable[[Outgoing], Mapping[str, Any] | bytes]


class Topic(str):
    """The name of a topic whose records are not choreo's, and what they are; given to `App(topics=...)`.

        legacy = Topic("orders-v0", read=lambda r: (r.json["event"], r.json["payload"]),
                       write=lambda e: {"event": e.type, "payload": e.data})
        app = App(inventory, topics={"orders": legacy})

    Records with all of CloudEvents' headers, or in its structured mode, are read as such whatever `read` says.

    Args:
        read: Type and data (or JSON bytes) of the event in a record; None where it is none, and is skipped. Same
            record in, same event out: it is called again for a redelivery.
        id: What a duplicate is known by; topic, partition, offset and timestamp unless given.
        correlation: Id of the flow it belongs to; it begins one unless given.
        write: The value of an event, a JSON object or bytes. Unless given it is the event's data, with CloudEvents'
            headers. What it raises fails the handler, or the publication.

    Raises:
        DeclarationError: Something given is no function, or there is an `id` or `correlation` without `read`.
    """

    read: Read | None
    id: Callable[[Incoming], str] | None
    correlation: Callable[[Incoming], str | None] | None
    write: Write | None

    def __new__(
        cls,
        name: str,
        *,
        read: Read | None = None,
        id: Callable[[Incoming], str] | None = None,
        correlation: Callable[[Incoming], str | None] | None = None,
        write: Write | None = None,
    ) -> "Topic":
        """See the class."""
        given = {"read": read, "id": id, "correlation": correlation, "write": write}
        for word, function in given.items():
            if function is not None and not callable(function):
                raise DeclarationError(f"Topic({name!r}): {word}={function!r} must be a function")
        if read is None and (id is not None or correlation is not None):
            raise DeclarationError(
                f"Topic({name!r}): id= and correlation= say more of what is read; give it read= too"
            )
        topic = super().__new__(cls, name)
        vars(topic).update(given)
        return topic

    def incoming(self, record: Record, lay: Mapping[str, str] | None = None) -> Record | None:
        """The record as choreo would have found it; None if it holds no event.

        Args:
            lay: Where it lay first (`choreo.runtime.replaying.ORIGINAL`), if that is elsewhere.

        Raises:
            DecodeError: `unreadable`, naming the function and what it raised, never what that said; those of
                `Incoming.json` and of an envelope.
        """
        headers = last_headers(record.headers)
        if self.read is None or _MARK in headers or cloudevents.is_structured(headers):
            return record
        found = Incoming(record, lay)
        read = self._call("read", self.read, found)
        if read is None:
            return None
        try:
            type_, data = read
            value = data if isinstance(data, bytes) else dumps_exactly(dict(data))
        except (TypeError, ValueError) as error:
            raise self._unreadable("read", f"returned no (type, data): {type(error).__name__}") from None
        stated = {"ce_type": type_, **({} if "ce_source" in headers else self._identity(found))}
        for name, text in stated.items():
            if not isinstance(text, str) or not text or len(text.encode()) > cloudevents.ID_BYTES_MAX:
                raise self._unreadable(name[3:], f"gave no text of 1 to {cloudevents.ID_BYTES_MAX} bytes")
        stated |= {_MARK: "1.0", "content-type": "application/json"}
        kept = tuple(header for header in record.headers if header[0] not in stated)
        said: Iterable[Header] = ((name, text.encode()) for name, text in stated.items())
        return record._replace(value=value, headers=(*kept, *said))

    def _identity(self, found: Incoming) -> dict[str, str]:
        lies = f"{found.topic}/{found.partition}/{found.offset}/{found.timestamp_ms}"
        id_ = lies if self.id is None else self._call("id", self.id, found)
        flow = None if self.correlation is None else self._call("correlation", self.correlation, found)
        return {"ce_id": id_, "ce_source": f"/{found.topic}", "ce_correlationid": id_ if flow is None else flow}

    def _call(self, word: str, function: Callable[[Incoming], Any], found: Incoming) -> Any:
        try:
            return function(found)
        except DecodeError:
            raise
        except Exception as error:
            raise self._unreadable(word, f"raised {type(error).__name__}") from None

    def _unreadable(self, word: str, what: str) -> DecodeError:
        return DecodeError("unreadable", f"{word} of the topic {self!s} {what}")


def prefixed(prefix: str, name: str) -> str:
    """The name with the prefix before it; a `Topic` stays one."""
    return Topic(prefix + name, **vars(name)) if isinstance(name, Topic) else prefix + name


def wire_value(topic: str, envelope: Envelope, payload: bytes) -> bytes:
    """The value of an event's record in a topic, which may be a `Topic`."""
    if not isinstance(topic, Topic) or topic.write is None:
        return payload
    value = topic.write(Outgoing(envelope, payload))
    return value if isinstance(value, bytes) else dumps_exactly(dict(value))


def wire_record(topic: str, envelope: Envelope, key: bytes | None, value: bytes) -> ProducerRecord:
    """The record of an event whose value is made by `wire_value`."""
    headers: Headers = cloudevents.write(envelope)
    if isinstance(topic, Topic):
        if topic.write is not None:
            headers = tuple(header for header in headers if header[0] != _MARK)
        topic = str(topic)
    return ProducerRecord(topic, key, value, headers)
