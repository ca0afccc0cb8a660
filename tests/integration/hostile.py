"""Records as no producer should write them, and what is to become of each: every item of "Bad input" of the issue."""

import base64
from typing import NamedTuple

import orjson

from choreo.record import Header

SECRET = "sk-live-9f8e7d6c5b4a"
"""Planted wherever a sender has a say; it belongs into no log record and into no header that choreo adds."""
MEGABYTE = 1024 * 1024
SENT, LOST = "parcel.sent", "parcel.lost"
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
SAID_BY = "x-name"
ABSENT = b"(left out)"


class Hostile(NamedTuple):
    """One record. `outcome`: "handled", "skipped", or the reason of its dead letter."""

    name: str
    outcome: str
    value: bytes | None
    headers: tuple[Header, ...]
    key: bytes | None = b"one lane for all of them"


def headers(name: str, *more: Header, **attributes: bytes | None) -> tuple[Header, ...]:
    """Headers of a good event in binary mode, with `attributes` in place of its own, or none where one is ABSENT."""
    found: dict[str, bytes | None] = {
        "specversion": b"1.0",
        "id": name.encode(),
        "source": b"/hostile",
        "type": SENT.encode(),
        **attributes,
    }
    own: list[Header] = [(f"ce_{key}", value) for key, value in found.items() if value is not ABSENT]
    return ((SAID_BY, name.encode()), ("content-type", b"application/json"), *own, *more)


def data(name: str, rest: bytes = b"") -> bytes:
    """The JSON of an event, `rest` put in before the closing brace."""
    return b'{"name":"%s","note":"%s"%s}' % (name.encode(), SECRET.encode(), rest)


def good(name: str) -> Hostile:
    """A record without fault."""
    return Hostile(name, "handled", data(name), headers(name))


def _value(name: str, outcome: str, value: bytes | None, **more: bytes | None) -> Hostile:
    return Hostile(name, outcome, value, headers(name, **more))


def _with(name: str, outcome: str, *more: Header, **attributes: bytes | None) -> Hostile:
    return Hostile(name, outcome, data(name), headers(name, *more, **attributes))


def _structured(name: str, outcome: str, value: bytes, content_type: bytes) -> Hostile:
    return Hostile(name, outcome, value, ((SAID_BY, name.encode()), ("content-type", content_type)))


def _event(name: str, **more: object) -> bytes:
    return orjson.dumps({"specversion": "1.0", "id": name, "source": "/hostile", "type": SENT, **more})


def values() -> list[Hostile]:
    """What is wrong with the value."""
    secret = SECRET.encode()
    deep = b"[" * 200_000 + b"]" * 200_000
    digits = b"7" * 5_000
    return [
        _value("null value", "skipped", None),
        Hostile("null value and null key", "skipped", None, headers("null value and null key"), None),
        _value("empty value", "not_json", b""),
        Hostile("empty value, null key", "not_json", b"", headers("empty value, null key"), None),
        _value("not JSON", "not_json", b"password=" + secret),
        _value("not UTF-8", "not_json", b'{"name":"\xff%s"}' % secret),
        _value("not UTF-8 in a field nobody reads", "not_json", data("x", b',"more":"\xff"')),
        _value("UTF-16", "not_json", f'{{"name":"{SECRET}"}}'.encode("utf-16")),
        _value("no object", "invalid_data", b'["%s"]' % secret),
        _value("wrong types", "invalid_data", b'{"name":["%s"],"note":{"%s":1}}' % (secret, secret)),
        _value("a validator that raises", "invalid_data", data("explode")),
        _value("payload over the limit", "payload_too_large", data("x", b" " * MEGABYTE)),
        _value("nested 200,000 deep", "not_json", data("x", b',"more":' + deep)),
        _value("nested deep where anything is taken", "not_json", data("x", b',"anything":' + deep)),
        _value("a number of 5,000 digits", "not_json", data("x", b',"count":' + digits)),
        _value("5,000 digits in a field nobody reads", "not_json", data("x", b',"more":' + digits)),
        _value("a fraction of 5,000 digits", "handled", data("a fraction of 5,000 digits", b',"more":0.' + digits)),
        _value("NaN", "not_json", data("x", b',"weight":NaN')),
        _value("Infinity", "not_json", data("x", b',"weight":Infinity')),
        _value("-Infinity in a field nobody reads", "not_json", data("x", b',"more":-Infinity')),
        _value("a number that becomes infinite", "invalid_data", data("x", b',"weight":1e999')),
        _value("duplicate JSON keys", "handled", data("x", b',"name":"duplicate JSON keys"')),
        _value("an escaped lone surrogate", "not_json", data("x", b',"more":"\\ud800"')),
        _value("a lone surrogate in bytes", "not_json", data("x", b',"more":"\xed\xa0\x80"')),
    ]


def attributes() -> list[Hostile]:
    """What is wrong with the attributes."""
    long = (SECRET * MEGABYTE)[:MEGABYTE].encode()
    plain = "plain JSON without CloudEvents"
    found = [
        Hostile(plain, "not_cloudevents", data(plain), ((SAID_BY, plain.encode()),)),
        _with("wrong ce_type", "skipped", type=b"parcel sent " + SECRET.encode()),
        _with("unknown type", "skipped", type=b"parcel.unheard-of"),
        _with("unknown type of 1 MB", "skipped", type=long),
        _with("unknown version", "unknown_version", dataschema=b"urn:choreo:parcel.sent:99"),
        _with("a version that is none", "unknown_version", dataschema=b"urn:choreo:parcel.sent:" + SECRET.encode()),
        _with("unknown version, handler with its own key", "unknown_version", type=LOST.encode(),
              dataschema=b"urn:choreo:parcel.lost:99"),
        _with("another type in the same topic", "handled", type=LOST.encode()),
        _with("wrong specversion", "unsupported_specversion", specversion=b"0.3"),
        _with("not application/json", "unsupported_content_type", ("content-type", b"application/avro")),
        _with("ce_source of 1 MB", "bad_attribute", source=long),
        _with("id of 1 MB", "bad_attribute", id=long),
        _with("time in the year 9999", "handled", time=b"9999-12-31T23:59:59.999999Z"),
        _with("a time that is none", "handled", time=b"10000-99-99T" + SECRET.encode()),
        _with("an extension of 1 MB", "handled", tenant=long),
        _with("correlationid of 1 MB", "handled", correlationid=long),
    ]  # fmt: skip
    for each in ("id", "source", "type"):
        found += [
            _with(f"missing ce_{each}", "missing_attribute", **{each: ABSENT}),
            _with(f"empty ce_{each}", "missing_attribute", **{each: b""}),
            _with(f"null ce_{each}", "bad_attribute", **{each: None}),
            _with(f"ce_{each} not UTF-8", "bad_attribute", **{each: b"\xff" + SECRET.encode()}),
        ]
    return found


def other_headers() -> list[Hostile]:
    """What is wrong with the headers beside them."""
    forged: tuple[Header, ...] = (
        ("choreo-dlq-reason", SECRET.encode()),
        ("choreo-dlq-detail", SECRET.encode()),
        ("choreo-dlq-original-topic", SECRET.encode()),
        ("choreo-dlq-original-offset", b"-1"),
        ("choreo-dlq-attempts", SECRET.encode()),
        ("choreo-dlq-truncated", SECRET.encode()),
        ("choreo-dlq-of-my-own", SECRET.encode()),
        ("choreo-retry-attempts", b"999999"),
        ("choreo-retry-handler", SECRET.encode()),
        ("choreo-replay-id", SECRET.encode()),
    )
    state: Header = ("tracestate", b"a=b," * (MEGABYTE // 4))
    many: tuple[Header, ...] = tuple((f"h{n}", b"%d" % n) for n in range(10_000))
    raw: Header = ("x-\udcff\udcfe", b"\xff")
    poisoned = "forged dead-letter headers on what is no JSON"
    return [
        _with("duplicate headers", "handled", ("ce_id", b"the last one counts"), ("h", b"1"), ("h", None)),
        _with("broken traceparent", "handled", ("traceparent", b"00-zz-" + SECRET.encode())),
        _with("traceparent not UTF-8", "handled", ("traceparent", b"\xff"), ("tracestate", b"\xff")),
        _with("traceparent of 1 MB", "handled", ("traceparent", TRACEPARENT + b"-" * MEGABYTE)),
        _with("tracestate of 1 MB", "handled", ("traceparent", TRACEPARENT), state),
        _with("a header key that is not UTF-8", "handled", raw),
        Hostile("such a key on what is no JSON", "not_json", b"{", headers("such a key on what is no JSON", raw)),
        _with("10,000 headers", "handled", *many),
        Hostile("10,000 headers on what is no JSON", "not_json", b"{",
                headers("10,000 headers on what is no JSON", *many)),
        _with("10,000 extensions", "handled", *((f"ce_{name}", value) for name, value in many)),
        _with("forged retry and dead-letter headers", "handled", *forged),
        Hostile(poisoned, "not_json", b"{" + SECRET.encode(), headers(poisoned, *forged)),
    ]  # fmt: skip


def structured() -> list[Hostile]:
    """What is wrong in structured mode."""
    ours = b"application/cloudevents+json; charset=UTF-8"
    deep = _event("deep")[:-1] + b',"data":{"name":"deep","more":' + b"[" * 200_000 + b"]" * 200_000 + b"}}"
    less_deep = _event("less deep")[:-1] + b',"data":{"name":"x","anything":' + b"[" * 300 + b"]" * 300 + b"}}"
    base64_data = base64.b64encode(data("structured in base64")).decode()
    return [
        _structured("structured", "handled", _event("structured", data=orjson.loads(data("structured"))), ours),
        _structured("structured in base64", "handled", _event("structured in base64", data_base64=base64_data), ours),
        _structured("structured, no JSON", "not_json", b"{" + SECRET.encode(), ours),
        _structured("structured, empty", "not_json", b"", ours),
        _structured("structured, no object", "not_cloudevents", b'"%s"' % SECRET.encode(), ours),
        _structured("structured, without data", "invalid_data", _event("structured, without data"), ours),
        _structured("structured, not base64", "bad_attribute", _event("s", data_base64=SECRET + "!"), ours),
        _structured("structured, base64 of 1", "bad_attribute", _event("s", data_base64=1), ours),
        _structured("structured, id a number", "bad_attribute", _event("s", id=7, data={}), ours),
        _structured("structured, id of 1 MB", "payload_too_large", _event("i" * MEGABYTE, data={}), ours),
        _structured("structured, unknown type", "skipped", _event("s", type="no.such"), ours),
        _structured("structured, nested 200,000 deep", "not_json", deep, ours),
        _structured("structured, nested 300 deep", "not_json", less_deep, ours),
        _structured(
            "structured in Avro", "unsupported_content_type", SECRET.encode(), b"application/cloudevents+avro"
        ),
        _structured("a batch", "unsupported_content_type", b"[]", b"application/cloudevents-batch+json"),
    ]


def everything() -> list[Hostile]:
    """All of it, good records between and after."""
    found: list[Hostile] = []
    for number, each in enumerate([*values(), *attributes(), *other_headers(), *structured()]):
        found += [each, good(f"good {number}")]
    return [*found, good("the last good one")]
