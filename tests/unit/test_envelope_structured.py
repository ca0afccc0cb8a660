"""CloudEvents in structured mode: the whole event in the value."""

import base64

import orjson
import pytest

from choreo.envelope import read
from choreo.errors import DecodeError
from choreo.record import Headers

STRUCTURED: Headers = (("content-type", b"application/cloudevents+json; charset=UTF-8"),)
BASIC = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.placed"}


def structured(**attributes: object) -> bytes:
    """A structured event with `attributes` over the least it needs."""
    return orjson.dumps({**BASIC, "data": {}, **attributes})


def refusal(value: bytes, headers: Headers = STRUCTURED) -> str:
    """The reason for which a record is refused."""
    with pytest.raises(DecodeError) as caught:
        read(headers, value)
    return caught.value.reason


def test_a_structured_event() -> None:
    """Attributes and data in the value; numbers and booleans among the attributes become text."""
    value = structured(
        data={"a": [1, "x"]}, time="2026-01-01T00:00:00Z", sequence=7, sampled=True, correlationid="c", subject="s"
    )
    envelope, data = read(STRUCTURED, value)
    assert (envelope.id, envelope.source, envelope.type) == ("1", "/shop", "order.placed")
    assert (envelope.time, envelope.subject, envelope.correlationid) == ("2026-01-01T00:00:00Z", "s", "c")
    assert envelope.extensions == {"sequence": "7", "sampled": "true"}
    assert orjson.loads(data) == {"a": [1, "x"]}


def test_structured_data_as_base64() -> None:
    """Bytes are unpacked; what is no base64 is refused."""
    encoded = base64.b64encode(b'{"a": 1}').decode()
    assert read(STRUCTURED, structured(data_base64=encoded))[1] == b'{"a": 1}'
    for broken in ("%%%", "YQ", 7, None, "\u00fc"):
        assert refusal(structured(data_base64=broken)) == "bad_attribute"


def test_a_structured_event_may_carry_its_trace_within() -> None:
    """The Distributed Tracing extension counts where there is no plain header."""
    value = structured(traceparent="inner", tracestate="t=1")
    envelope, _ = read(STRUCTURED, value)
    assert (envelope.traceparent, envelope.tracestate) == ("inner", "t=1")
    envelope, _ = read((*STRUCTURED, ("traceparent", b"outer")), value)
    assert (envelope.traceparent, envelope.tracestate) == ("outer", None)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "not_json"),
        (b"not json", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"[" * 200_000, "not_json"),
        (b'{"a":' * 200_000, "not_json"),
        (b'{"id": NaN}', "not_json"),
        (b'{"id": "\\ud800"}', "not_json"),
        (b"[]", "not_cloudevents"),
        (b"null", "not_cloudevents"),
        (b"{}", "missing_attribute"),
        (structured(id=7), "bad_attribute"),
        (structured(source=None), "bad_attribute"),
        (structured(type=["x"]), "bad_attribute"),
        (structured(id=""), "missing_attribute"),
        (structured(id="x" * 1_000_000), "bad_attribute"),
        (structured(specversion="0.3"), "unsupported_specversion"),
        (structured(datacontenttype="text/xml"), "unsupported_content_type"),
    ],
)
def test_a_broken_structured_event_is_refused(value: bytes, reason: str) -> None:
    """Each with its reason, and never with an error of the parser's."""
    assert refusal(value) == reason


@pytest.mark.parametrize(
    "content_type",
    [b"application/cloudevents", b"application/cloudevents+avro", b"application/cloudevents-batch+json"],
)
def test_other_structured_formats_are_refused(content_type: bytes) -> None:
    """Batches and binary formats are no event of ours."""
    assert refusal(structured(), (("content-type", content_type),)) == "unsupported_content_type"


@pytest.mark.parametrize("number", ["12345678901234567890123", "0.12345678901234567890123"])
def test_structured_data_keeps_its_numbers(number: str) -> None:
    """A number of more digits than a float has is the same in both modes."""
    _, data = read(STRUCTURED, structured()[:-1].replace(b'"data":{}', b'"data":{"n":%s}' % number.encode()) + b"}")
    assert number.encode() in data


@pytest.mark.parametrize(
    "value", [b'{"password": "hunter2", broken', structured(id=["hunter2"]), structured(data_base64="hunter2!")]
)
def test_an_error_never_quotes_the_value(value: bytes) -> None:
    """It may hold secrets, and errors go to logs."""
    with pytest.raises(DecodeError) as caught:
        read(STRUCTURED, value)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
