"""Ten thousand flows that keep to what is declared: nothing is found, whatever they are looked at by."""

from collections.abc import Sequence

import pytest

from choreo.flow.drift import Drift, compare
from choreo.flow.drift_log import LogReading, Window
from choreo.flow.drift_seen import Seen
from choreo.flow.drift_traces import from_traces
from choreo.flow.model import Capability
from choreo.flow.spans import Span
from handlers.order_fulfilment.app import app
from tests.clean_flows import Clean, Flows

FLOWS = 10_000
HOUR_MS = 3_600_000.0
WINDOW = Window(0.0, 24 * HOUR_MS)
CAPABILITY = app.capability()


@pytest.fixture(scope="module")
def clean() -> Clean:
    """The flows; the last of them began so that all could end in time."""
    return Flows(CAPABILITY, seed=20).make(FLOWS, from_ms=HOUR_MS, to_ms=23 * HOUR_MS)


@pytest.fixture(scope="module")
def reading(clean: Clean) -> LogReading:
    """The log of them, read."""
    return LogReading(clean.records, capability=CAPABILITY)


def judged(seen: Seen, capability: Capability = CAPABILITY) -> Drift:
    """What comes of it, with the default timeout."""
    found = compare(capability, seen)
    assert found.sample["correlation_ids"] == FLOWS
    assert found.fitness == 1.0
    return found


def places(found: Drift) -> list[tuple[str, str, str]]:
    """All that is said."""
    return [(each.level, each.id, each.where) for each in found.findings]


def test_clean_flows_by_log_and_store_show_nothing(clean: Clean, reading: LogReading) -> None:
    """Duplicates, retries and dead letters among them."""
    services = [service.name for service in CAPABILITY.services]
    found = judged(reading.seen(clean.history, window=WINDOW, told=services))
    assert places(found) == []
    assert found.precision == 1.0
    assert "handler_failed" in " ".join(found.notes)


def test_clean_flows_by_traces_show_nothing(clean: Clean) -> None:
    """The same flows, of which nothing else is known."""
    found = judged(from_traces(clean.spans, capability=CAPABILITY, window=WINDOW, sampled=1.0))
    assert places(found) == []
    assert found.precision == 1.0
    assert found.seen.sampled == 1.0


def test_clean_flows_by_the_log_alone_show_no_more_than_it_can_know(reading: LogReading) -> None:
    """Handlers that emit nothing leave nothing on a log, which is no finding."""
    found = judged(reading.seen(window=WINDOW))
    assert {each.level for each in found.findings} == {"inconclusive"}
    silent = {f"{service.name}.{handler.name}" for service, handler in CAPABILITY.handlers() if not handler.emits_min}
    assert {each.where.rpartition(" -> ")[2] for each in found.findings} == silent


def test_clean_flows_sampled_at_ten_percent_show_nothing(clean: Clean) -> None:
    """A tenth of the flows, by their ids: nothing is missing in those, and that they are a tenth is found out."""
    tenth = _of_low_ids(clean.spans)
    found = compare(CAPABILITY, from_traces(tenth, capability=CAPABILITY, window=WINDOW))
    assert FLOWS * 0.08 < found.sample["correlation_ids"] < FLOWS * 0.12
    assert found.seen.sampled == pytest.approx(0.1, rel=0.01)
    assert {each.level for each in found.findings} <= {"inconclusive"}
    assert {each.id for each in found.findings} <= {"never_observed_edge"}


def _of_low_ids(spans: Sequence[Span]) -> list[Span]:
    """As OpenTelemetry's sampler of a ratio chooses."""
    return [span for span in spans if int(span.trace_id[-16:], 16) < 0.1 * 2**64]
