"""Which flows a name stands for, on the log: a correlation id, an event id, a trace id or a record key. No I/O."""

import re
from collections.abc import Iterable

from choreo.flow.joining import envelope_of
from choreo.record import Record

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def flows_of(records: Iterable[Record], name: str, *, by_key: bool = False) -> list[str]:
    """Correlation ids, in order of time.

    A correlation id wins over an event id, and that over a trace id: an id is mostly the name of one thing, and where
    it is the name of two the narrower answer would hide the wider one.

    Args:
        records: Of any flow; what is no event is passed over.
        name: What to look for; the text of a record key with `by_key`.
    """
    key = name.encode()
    by_kind: tuple[dict[str, None], ...] = ({}, {}, {})
    for record in sorted(records, key=lambda each: each.timestamp_ms):
        if by_key and record.key != key:
            continue
        envelope = envelope_of(record)
        if envelope is None:
            continue
        flow = envelope.correlationid
        if by_key or flow == name:
            by_kind[0].setdefault(flow)
        elif envelope.id == name:
            by_kind[1].setdefault(flow)
        elif (trace := _TRACEPARENT.match(envelope.traceparent or "")) is not None and trace[1] == name:
            by_kind[2].setdefault(flow)
    return list(next((found for found in by_kind if found), {}))
