"""CloudEvents on Kafka headers: ours, those of others, and those of attackers."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.envelope import CORE, ID_BYTES_MAX, TRACESTATE_BYTES_MAX, Envelope, event_type, read, usual, write
from choreo.errors import DecodeError
from choreo.record import Header, Headers, last_headers

MINIMAL: Headers = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"1"),
    ("ce_source", b"/shop"),
    ("ce_type", b"order.placed"),
)
_TEXT = st.text(min_size=1, max_size=50)
_RESERVED = {*CORE, "correlationid", "causationid"}


def refusal(headers: Headers) -> str:
    """The reason for which a record is refused."""
    with pytest.raises(DecodeError) as caught:
        read(headers, b"{}")
    return caught.value.reason


def without(name: str) -> Headers:
    """The least headers, but for one."""
    return tuple(header for header in MINIMAL if header[0] != name)


@given(
    envelope=st.builds(
        Envelope,
        id=_TEXT,
        source=_TEXT,
        type=_TEXT,
        version=st.none() | st.integers(1, 10**9 - 1),
        time=st.none() | _TEXT,
        subject=st.none() | _TEXT,
        dataschema=st.none(),
        correlationid=_TEXT,
        causationid=st.none() | _TEXT,
        traceparent=st.none() | _TEXT,
        tracestate=st.none() | _TEXT,
        extensions=st.dictionaries(
            st.from_regex(r"[a-z0-9]{1,20}", fullmatch=True).filter(lambda name: name not in _RESERVED), st.text()
        ),
    )
)
def test_what_is_written_is_read(envelope: Envelope) -> None:
    """Every attribute survives the headers, which are UTF-8, not null and each there once."""
    headers = write(envelope)
    names = [name for name, _ in headers]
    assert len(set(names)) == len(names)
    assert all(value is not None and value.decode() is not None for _, value in headers)
    schema = None if envelope.version is None else f"urn:choreo:{envelope.type}:{envelope.version}"
    assert read(headers, b"{}") == (envelope._replace(dataschema=schema), b"{}")


ODD_NAMES = ("ce_more", "CE_ID", "other")
ODD_VALUES = (
    None,
    b"",
    b"1.0",
    b"application/json",
    b"\xff",
    b"urn:choreo:a:2",
    b"x" * 300,
    b"x" * 600,
    b"x" * 1_100,
)


def test_the_quick_way_to_read_is_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """With any two headers missing, doubled or odd: the same envelope, or the same error."""
    usual_headers = dict(write(Envelope("i", "/s", "a", 2, "t", "s", None, "c", "d", "p", "q")))
    names = [*usual_headers, *ODD_NAMES]
    changes: list[Headers] = [((name, value),) for name in names for value in ODD_VALUES]
    changes += [((name, b"again"), (name, b"and again")) for name in names] + [()]

    def outcome(headers: Headers) -> object:
        try:
            return read(headers, b"{}")
        except DecodeError as error:
            return error.reason, error.detail

    given_headers: list[Headers] = []
    for first, second in combinations(changes, 2):
        changed = {**usual_headers, **dict(first[:1]), **dict(second[:1])}
        whole = (*changed.items(), *first[1:], *second[1:])
        touched = {name for name, _ in first}
        given_headers += [whole, tuple(header for header in whole if header[0] not in touched)]
    quick = [outcome(headers) for headers in given_headers]
    assert sum(usual(headers) is not None for headers in given_headers) > 1_000
    monkeypatch.setattr("choreo.envelope.reading.usual", lambda _: None)
    for headers, found in zip(given_headers, quick, strict=True):
        assert outcome(headers) == found, headers


def test_most_records_are_read_the_quick_way() -> None:
    """Those of choreo, as long as no extension is propagated."""
    assert usual(write(Envelope("i", "/s", "t", 1, correlationid="c", causationid="d", traceparent="e"))) is not None


def test_the_headers_of_an_event_are_those_of_the_kafka_binding() -> None:
    """Names as other consumers know them, and the version where CloudEvents has a place for it."""
    headers = last_headers(
        write(Envelope("1", "/shop", "order.placed", version=2, correlationid="c", causationid="b"))
    )
    assert headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"1",
        "ce_source": b"/shop",
        "ce_type": b"order.placed",
        "content-type": b"application/json",
        "ce_correlationid": b"c",
        "ce_dataschema": b"urn:choreo:order.placed:2",
        "ce_causationid": b"b",
    }


def test_the_least_event_of_a_foreign_producer() -> None:
    """Id, source and type are enough; it begins a flow of its own."""
    envelope, data = read(MINIMAL, b'{"a":1}')
    assert envelope == Envelope("1", "/shop", "order.placed", correlationid="1")
    assert data == b'{"a":1}'


def test_a_foreign_dataschema_is_left_alone() -> None:
    """It states no version of ours and goes out again as it came."""
    envelope, _ = read((*MINIMAL, ("ce_dataschema", b"https://example.com/schema/2")), b"{}")
    assert envelope.version is None
    assert last_headers(write(envelope))["ce_dataschema"] == b"https://example.com/schema/2"


@pytest.mark.parametrize("digits", ["", "x", "-1", "1.0", "\u0661", "9" * 5_000])
def test_a_version_that_is_no_number_matches_none(digits: str) -> None:
    """A broken version is told from a missing one, and is no version anybody handles."""
    envelope, _ = read((*MINIMAL, ("ce_dataschema", f"urn:choreo:order.placed:{digits}".encode())), b"{}")
    assert envelope.version == -1


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type"])
def test_a_missing_or_empty_attribute_is_refused(name: str) -> None:
    """Without id, source or type there is no event."""
    assert refusal(without(name)) == "missing_attribute"
    assert refusal((*without(name), (name, b""))) == "missing_attribute"


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type"])
def test_an_attribute_that_is_no_utf8_is_refused(name: str) -> None:
    """It cannot be copied into follow-on events."""
    assert refusal((*without(name), (name, b"\xff\xfe"))) == "bad_attribute"


@pytest.mark.parametrize("name", ["ce_id", "ce_source", "ce_type"])
def test_an_oversized_attribute_is_refused(name: str) -> None:
    """A megabyte of id would be copied into every follow-on event; the limit itself is read."""
    assert refusal((*without(name), (name, b"x" * 1_000_000))) == "bad_attribute"
    assert refusal((*without(name), (name, b"x" * (ID_BYTES_MAX + 1)))) == "bad_attribute"
    read((*without(name), (name, b"x" * ID_BYTES_MAX)), b"{}")


def test_oversized_correlation_is_replaced() -> None:
    """A correlation or causation id of a megabyte is as good as none."""
    big = b"x" * 1_000_000
    envelope, _ = read((*MINIMAL, ("ce_correlationid", big), ("ce_causationid", big)), b"{}")
    assert (envelope.correlationid, envelope.causationid) == ("1", None)


def test_plain_json_is_no_event() -> None:
    """A record without ce_ headers is told from a broken event."""
    assert refusal(()) == "not_cloudevents"
    assert refusal((("content-type", b"application/json"), ("traceparent", b"x"))) == "not_cloudevents"


@pytest.mark.parametrize("version", [b"0.3", b"2.0", b"", b"1.0 "])
def test_another_specversion_is_refused(version: bytes) -> None:
    """What the attributes of another version mean is not known."""
    assert refusal((*without("ce_specversion"), ("ce_specversion", version))) == "unsupported_specversion"


def test_of_duplicate_headers_the_last_counts() -> None:
    """As with `lastHeader` of Kafka's Java client."""
    envelope, _ = read((("ce_id", b"forged"), *MINIMAL), b"{}")
    assert envelope.id == "1"
    assert event_type(last_headers((*MINIMAL, ("ce_type", b"order.closed")))) == "order.closed"


def test_ten_thousand_headers_are_read() -> None:
    """They are many, and no reason to stop."""
    many: tuple[Header, ...] = tuple((f"x-{n}", b"y") for n in range(10_000))
    assert read((*many, *MINIMAL), b"{}")[0] == Envelope("1", "/shop", "order.placed", correlationid="1")


@pytest.mark.parametrize(
    "name", ["ce_", "ce_a-b", "ce_a_b", "ce_\u00fc", "ce_\udcff", "ce_a b", "ce_" + "x" * 65, "x_tenant", "retry"]
)
def test_names_that_are_no_extension_are_ignored(name: str) -> None:
    """CloudEvents: lower-case letters and digits; all else belongs to somebody else."""
    assert read((*MINIMAL, (name, b"v")), b"{}")[0].extensions == {}


def test_extensions_are_kept_by_their_names() -> None:
    """A prefix in capitals is the same header, and a value that is not UTF-8 is left out."""
    headers: Headers = (("CE_Tenant", b"blue"), ("ce_n0", b"1"), ("ce_raw", b"\xff"), ("ce_null", None))
    assert read((*MINIMAL, *headers), b"{}")[0].extensions == {"tenant": "blue", "n0": "1"}


def test_forged_choreo_headers_are_no_attributes() -> None:
    """What looks like our dead letter's headers says nothing about the event."""
    forged: Headers = (("choreo_attempt", b"99"), ("choreo-dlq-reason", b"x"), ("dlq.offset", None))
    assert read((*MINIMAL, *forged), b"{}")[0] == Envelope("1", "/shop", "order.placed", correlationid="1")


@pytest.mark.parametrize("content_type", [b"text/plain", b"application/avro", b"application/xml; x=+json"])
def test_another_content_type_is_refused(content_type: bytes) -> None:
    """Data that is stated not to be JSON is not read as JSON."""
    assert refusal((*MINIMAL, ("content-type", content_type))) == "unsupported_content_type"


@pytest.mark.parametrize(
    "content_type",
    [b"application/json", b"Application/JSON; charset=utf-8", b"text/json", b"application/x+json", b""],
)
def test_every_name_of_json_is_read(content_type: bytes) -> None:
    """With parameters, in capitals, as a suffix, or unsaid."""
    read((*MINIMAL, ("content-type", content_type)), b"{}")


def test_a_time_is_passed_on_as_it_came() -> None:
    """The year 9999, or nonsense: choreo never interprets it."""
    for text in ("9999-12-31T23:59:59Z", "+292278994-08-17T07:12:55.807Z", "yesterday"):
        assert read((*MINIMAL, ("ce_time", text.encode())), b"{}")[0].time == text


def test_a_long_tracestate_is_dropped_and_a_broken_traceparent_kept_for_the_tracer() -> None:
    """Neither stops the event."""
    headers: Headers = (("traceparent", b"rubbish"), ("tracestate", b"a" * 1_000_000))
    envelope, _ = read((*MINIMAL, *headers), b"{}")
    assert (envelope.traceparent, envelope.tracestate) == ("rubbish", None)
    envelope, _ = read((*MINIMAL, ("tracestate", b"a" * TRACESTATE_BYTES_MAX)), b"{}")
    assert envelope.tracestate == "a" * TRACESTATE_BYTES_MAX
    envelope, _ = read((*MINIMAL, ("traceparent", b"\xff"), ("tracestate", None)), b"{}")
    assert (envelope.traceparent, envelope.tracestate) == (None, None)


def test_traced_changes_the_span_and_nothing_else() -> None:
    """The same event sent from another span."""
    envelope = Envelope("1", "/shop", "order.placed", traceparent="a", tracestate="b")
    assert envelope.traced("c", None) == envelope._replace(traceparent="c", tracestate=None)


def test_an_error_never_quotes_the_record() -> None:
    """Values may hold secrets, and errors go to logs."""
    secret = b"hunter2"
    cases: list[Headers] = [
        (*without("ce_id"), ("ce_id", secret * 1_000)),
        (*MINIMAL, ("content-type", b"text/" + secret)),
        (*without("ce_specversion"), ("ce_specversion", secret)),
    ]
    for headers in cases:
        with pytest.raises(DecodeError) as caught:
            read(headers, b"{}")
        assert "hunter2" not in f"{caught.value} {caught.value!r}"
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
