"""The envelope of a record: at a glance if choreo wrote it, else header by header."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

from choreo.envelope.attributes import NO_EXTENSIONS, Envelope, checked, require_json, text_of, version_of
from choreo.envelope.structured import is_structured, read_event, read_structured
from choreo.errors import DecodeError
from choreo.record import Headers, last_headers, new

USUAL_BYTES_MAX = 512
LAYOUTS_MAX = 64
_WANTED = (
    *("ce_specversion", "content-type", "ce_source", "ce_type", "ce_dataschema", "ce_id"),
    *("ce_time", "ce_subject", "ce_correlationid", "ce_causationid", "traceparent", "tracestate"),
)
"""What choreo writes where no extension is propagated."""
_USUAL = frozenset(_WANTED)
_LAYOUTS: dict[tuple[str, ...], Callable[[Sequence[bytes | None]], Sequence[Any]]] = {}


def read(headers: Headers, value: bytes) -> tuple[Envelope, bytes]:
    """The envelope and data (JSON bytes) of a record that is not a tombstone.

    Raises:
        DecodeError: `not_cloudevents`, `missing_attribute`, `bad_attribute`, `unsupported_specversion`,
            `unsupported_content_type`, `not_json`.
    """
    envelope = usual(headers)
    if envelope is not None:
        return envelope, value
    by_name = last_headers(headers)
    if is_structured(by_name):
        return read_structured(by_name, value)
    attributes = {
        name[3:].lower(): text
        for name, raw in by_name.items()
        if name[:3].lower() == "ce_" and (text := text_of(raw)) is not None
    }
    for name in ("id", "source", "type"):
        if f"ce_{name}" in by_name and name not in attributes:
            raise DecodeError("bad_attribute", f"the header ce_{name} is not UTF-8")
    if not attributes:
        if b'"specversion"' in value:
            # CloudEvents' SDK for Python writes structured mode under the content type of the data, or under none.
            return read_event(by_name, value)
        raise DecodeError("not_cloudevents", "the record has no ce_ headers and is not in structured mode")
    require_json(text_of(by_name.get("content-type")))
    return checked(attributes, by_name), value


def event_type(headers: Mapping[str, bytes | None]) -> str | None:
    """The `ce_type` of a record in binary mode, without reading anything else; None if there is none."""
    return text_of(headers.get("ce_type"))


def usual(headers: Headers) -> Envelope | None:
    """The envelope of a record as choreo writes it, at a quarter of the price of `read`; None: look more closely."""
    if not headers:
        return None
    names, values = zip(*headers)  # noqa: B905  # each is a pair
    pick = _LAYOUTS.get(names) or _layout(names)
    if pick is None:
        return None
    try:
        if len(b"".join(values)) > USUAL_BYTES_MAX:
            return None
    except TypeError:  # one is null
        return None
    version, content_type, source, type_, schema, raw_id, time, subject, correlation, causation, parent, state = pick(
        (*values, None)
    )
    if version != b"1.0" or content_type != b"application/json" or not (raw_id and source and type_):
        return None
    try:
        id_, (source_, type_name, stated, dataschema) = raw_id.decode(), _texts(source, type_, schema)
        return new(
            Envelope,
            (
                id_,
                source_,
                type_name,
                stated,
                None if time is None else time.decode(),
                None if subject is None else subject.decode(),
                dataschema,
                correlation.decode() if correlation else id_,
                causation.decode() if causation else None,
                parent.decode() if parent else None,
                state.decode() if state else None,
                NO_EXTENSIONS,
            ),
        )
    except UnicodeDecodeError:
        return None


def _layout(names: tuple[str, ...]) -> Callable[[Sequence[bytes | None]], Sequence[Any]] | None:
    """What picks the values of `_WANTED` out of those of headers so called, and a None behind them."""
    if len(names) > len(_WANTED) or len(set(names)) < len(names) or not _USUAL.issuperset(names):
        return None
    pick = itemgetter(*(names.index(name) if name in names else len(names) for name in _WANTED))
    if len(_LAYOUTS) < LAYOUTS_MAX:
        _LAYOUTS[names] = pick
    return pick


@lru_cache(maxsize=256)
def _texts(source: bytes, type_: bytes, schema: bytes | None) -> tuple[str, str, int | None, str | None]:
    """What is the same for all events of one type from one source."""
    text = None if schema is None else schema.decode()
    return source.decode(), type_.decode(), version_of(type_.decode(), text), text
