"""What the spans of one name, handler and event type have in common, encoded once: see `choreo.telemetry.quick`."""

from collections.abc import Hashable

from choreo.envelope import ID_BYTES_MAX, Envelope
from choreo.ports import UnitInfo
from choreo.telemetry import encoding
from choreo.telemetry.attributes import Attributes, of_process, of_send

KINDS_MAX = 10_000
LAYOUTS_MAX = 1_000
_ID = "messaging.message.id"
_FLOW = "messaging.message.conversation_id"
_KEY = "messaging.kafka.message.key"
_OFFSET = "messaging.kafka.offset"
_ID_NAME, _FLOW_NAME, _KEY_NAME, _OFFSET_NAME = map(encoding.name_of, (_ID, _FLOW, _KEY, _OFFSET))


class Kind:
    """Spans that differ in their ids and times, in their event's id, flow and key, and in its offset."""

    def __init__(self, template: bytes) -> None:
        self._template = template
        self._layouts: dict[tuple[int, int, int, int], tuple[bytes, bytes, bytes, bytes]] = {}

    def pieces(
        self,
        ids: tuple[bytes, bytes, bytes],
        start_ns: int,
        end_ns: int,
        id_: str,
        correlation_id: str,
        key: bytes | None,
        ending: bytes,
    ) -> tuple[bytes, ...]:
        """A span, as a field of its scope. `ids`: of its trace, its own, its parent's; `ending`: known at its end."""
        event, flow, text = id_.encode(), correlation_id.encode(), key
        if text is None or len(text) > ID_BYTES_MAX or not (text.isascii() or _is_text(text)):
            text = b""
        sizes = len(event), len(flow), len(text) if text is key else -1, len(ending)
        before, before_event, before_flow, before_key = self._layouts.get(sizes) or self._laid_out(*sizes)
        beginning = encoding.beginning(ids, start_ns, end_ns)
        return before, beginning, before_event, event, before_flow, flow, before_key, text, ending

    def _laid_out(self, event: int, flow: int, key: int, ending: int) -> tuple[bytes, bytes, bytes, bytes]:
        if len(self._layouts) >= LAYOUTS_MAX:
            self._layouts.clear()
        before = encoding.before_text
        before_event = self._template + before(_ID_NAME, event)
        before_flow = before(_FLOW_NAME, flow) if flow else b""
        before_key = before(_KEY_NAME, key) if key >= 0 else b""
        known = len(before_event) + event + len(before_flow) + flow + len(before_key) + max(0, key) + ending
        before_span = encoding.before(2, encoding.BEGINNING_BYTES + known)
        found = self._layouts[event, flow, key, ending] = before_span, before_event, before_flow, before_key
        return found


class Kinds:
    """The kinds of one service's spans.

    Args:
        always: Attributes of all of them.

    Attributes:
        known: Those that there are, by (topic, partition, handler, source, type and version) of a `process` span, by
            (topic, source, type and version) of a `send` span.
    """

    def __init__(self, always: Attributes) -> None:
        self._always = always
        self.known: dict[Hashable, Kind] = {}

    def process(self, name: Hashable, unit: UnitInfo) -> Kind:
        """A new one, of the unit's `process` span."""
        attributes = of_process(self._always, unit)
        return self._made(name, f"process {unit.record.topic}", encoding.CONSUMER, encoding.REMOTE, attributes)

    def send(self, name: Hashable, topic: str, envelope: Envelope, key: bytes | None) -> Kind:
        """A new one, of a `send` span."""
        attributes = of_send(self._always, topic, envelope, key)
        return self._made(name, f"send {topic}", encoding.PRODUCER, encoding.LOCAL, attributes)

    def _made(self, name: Hashable, title: str, number: int, flags: int, attributes: Attributes) -> Kind:
        if len(self.known) >= KINDS_MAX:  # types and sources are the senders' to choose
            self.known.clear()
        constant = {key: value for key, value in attributes.items() if key not in (_ID, _FLOW, _KEY, _OFFSET)}
        made = self.known[name] = Kind(encoding.template(title, number, flags, constant))
        return made


def of_offset(offset: int) -> bytes:
    """What a `process` span says of its record's."""
    return encoding.of_number(_OFFSET_NAME, offset)


def _is_text(key: bytes) -> bool:
    try:
        key.decode()
    except UnicodeDecodeError:
        return False
    return True
