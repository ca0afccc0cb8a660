"""W3C trace context: what is read, what is refused, and that nothing raises."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import TraceState
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from choreo.telemetry.traceparent import CHARS_MAX, Parent, is_usual, parse, parse_state, render, render_state

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"

trace_ids = st.integers(min_value=1, max_value=2**128 - 1)
span_ids = st.integers(min_value=1, max_value=2**64 - 1)
hexadecimal = st.text(alphabet="0123456789abcdef-", max_size=70)
keys = st.from_regex(r"[a-z][a-z0-9_\-*/]{0,20}", fullmatch=True) | st.from_regex(
    r"[a-z0-9][a-z0-9_\-*/]{0,20}@[a-z][a-z0-9_\-*/]{0,13}", fullmatch=True
)
values = st.from_regex(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,20}[\x21-\x2b\x2d-\x3c\x3e-\x7e]", fullmatch=True)


def test_parse_reads_the_example_of_the_recommendation() -> None:
    """The ids and the sampled flag of a header of version 00."""
    assert parse(GOOD) == Parent(int(TRACE, 16), int(SPAN, 16), 1)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "00",
        GOOD.upper(),
        GOOD[:-1],
        GOOD + "0",
        GOOD + "-",
        GOOD + "-00",
        GOOD + "\n",
        " " + GOOD,
        f"ff-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"0g-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}0-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-0x",
        f"00_{TRACE}_{SPAN}_01",
        f"00-{TRACE[:-1]}\u0663-{SPAN}-01",
        f"01-{TRACE}-{SPAN}-01x",
        f"01-{TRACE}-{SPAN}-01-" + "x" * CHARS_MAX,
    ],
)
def test_parse_takes_a_broken_header_for_none(header: str | None) -> None:
    """What breaks a rule of the recommendation names no parent, so a new root begins."""
    assert parse(header) is None
    assert not is_usual(header or "")


@pytest.mark.parametrize(
    "header", ["01" + GOOD[2:], "cc" + GOOD[2:] + "-what-the-future-brings", "fe" + GOOD[2:] + "-"]
)
def test_parse_reads_a_later_version_as_if_it_were_00(header: str) -> None:
    """A later version may have more fields behind the four that are known."""
    assert parse(header) == parse(GOOD)


@pytest.mark.parametrize(
    ("flags", "sampled", "kept"),
    [("00", False, 0), ("01", True, 1), ("02", False, 2), ("03", True, 3), ("fe", False, 2), ("ff", True, 3)],
)
def test_parse_masks_the_flags(flags: str, sampled: bool, kept: int) -> None:
    """Sampled is one bit among others: the random flag is kept and unknown ones are dropped."""
    parent = parse(f"00-{TRACE}-{SPAN}-{flags}")
    assert parent is not None
    assert parent.sampled is sampled
    assert parent.flags == kept


@given(trace_ids, span_ids, st.integers(min_value=0, max_value=3))
def test_what_is_rendered_is_parsed(trace_id: int, span_id: int, flags: int) -> None:
    """Every context survives being written and read."""
    header = render(trace_id, span_id, flags)
    assert len(header) == 55
    assert parse(header) == Parent(trace_id, span_id, flags)
    header = render(trace_id, span_id, flags)
    assert bool(is_usual(header)) is (flags < 4)
    assert (int(header[3:35], 16), int(header[36:52], 16)) == (trace_id, span_id)


@given(st.text() | hexadecimal | hexadecimal.map(lambda text: GOOD[: 55 - len(text)] + text))
def test_parse_never_raises(header: str) -> None:
    """Whatever is in the header, the answer is a valid parent or None."""
    parent = parse(header)
    assert parent is None or (0 < parent.trace_id < 2**128 and 0 < parent.span_id < 2**64 and 0 <= parent.flags < 4)


@given(trace_ids, span_ids, st.sampled_from(["00", "01"]), st.sampled_from(["00", "01", "7f", "ff"]), st.booleans())
def test_parse_agrees_with_opentelemetry(trace_id: int, span_id: int, version: str, flags: str, broken: bool) -> None:
    """The ids are those the API's own propagator reads."""
    header = f"{version}-{trace_id:032x}-{span_id:016x}-{flags}" + ("?" if broken else "")
    context = TraceContextTextMapPropagator().extract({"traceparent": header})
    theirs = trace.get_current_span(context).get_span_context()
    ours = parse(header)
    if version == "00" or not broken:
        assert (ours is not None) == theirs.is_valid
    if ours is not None:
        assert (ours.trace_id, ours.span_id) == (theirs.trace_id, theirs.span_id)


def test_parse_state_reads_members_in_order() -> None:
    """Blanks around members and empty members are allowed, and the order is kept."""
    assert parse_state("congo=t61rcWkgMzE, \trojo=00f067aa0ba902b7 ,,t1@vendor=a b") == (
        ("congo", "t61rcWkgMzE"),
        ("rojo", "00f067aa0ba902b7"),
        ("t1@vendor", "a b"),
    )


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        ",",
        "a",
        "a=",
        "=a",
        "A=a",
        "a=b=c",
        "a=1,a=2",
        "a=\u00e9",
        "a=b\n",
        "a@b@c=1",
        "a@0=1",
        "1=1",
        "k" * 257 + "=1",
        "a=" + "v" * 257,
        ",".join(f"k{index}=v" for index in range(33)),
    ],
)
def test_parse_state_drops_a_broken_one_whole(header: str | None) -> None:
    """One bad member makes the whole state worthless, and costs the parent nothing."""
    assert parse_state(header) == ()
    assert render_state(parse_state(header)) is None


@given(st.lists(st.tuples(keys, values), max_size=32, unique_by=lambda member: member[0]))
def test_what_state_is_rendered_is_parsed(members: list[tuple[str, str]]) -> None:
    """Every state survives being written and read, but for blanks at the start of a member's value."""
    state = tuple(members)
    assert parse_state(render_state(state)) == state


@given(st.text() | st.text(alphabet="ab01=,@ \t*/_-\x7f", max_size=60))
def test_parse_state_never_raises_and_suits_opentelemetry(header: str) -> None:
    """Whatever is in the header, each member that is read is one the SDK accepts."""
    state = parse_state(header)
    assert tuple(TraceState(state).items()) == state
