"""An edge against its own baseline: windows of time in which it was slower, or retried more, than it usually is.

The time from an edge's first sighting to its last is cut into WINDOWS equal windows; of each that holds at least
SAMPLES_MIN samples the median wait, or the share of retried units, is one figure. With at least WINDOWS_MIN figures
their median is the baseline, and 1.4826 times their median absolute deviation (MAD; a standard deviation if they
are normal) is their spread, though never less than what chance alone gives to a figure of so few samples. A figure
further above the baseline than DEVIATIONS_MAX spreads is an outlier, if it is also large enough to matter: twice
the baseline and WAIT_MS_MIN more for waits, RETRIED_MIN retried units for shares.

Source: Leys et al., "Detecting outliers: Do not use standard deviation around the mean, use absolute deviation around
the median", J. Exp. Soc. Psychol. 49 (2013); the error of a median of n is 1.2533 s / sqrt(n) for normal samples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import sqrt
from statistics import median
from typing import NamedTuple

from choreo.flow.drift_edges import Edge, Sighted
from choreo.flow.drift_findings import DriftFinding, Evidence
from choreo.flow.drift_seen import Seen

WINDOWS = 24
WINDOWS_MIN = 8
SAMPLES_MIN = 20
DEVIATIONS_MAX = 6.0
WAIT_MS_MIN = 10.0
RETRIED_MIN = 5
SHARE_MIN = 0.01
"""A share of retries of which nobody can say that it is unusual."""
_MAD_TO_DEVIATION = 1.4826
_MEDIAN_ERROR = 1.2533


class Sample(NamedTuple):
    """One sighting: a wait in milliseconds, or 1.0 for a retried unit and 0.0 for any other."""

    at_ms: float
    value: float
    trace_id: str
    flow: str


class _Window(NamedTuple):
    figure: float
    noise: float
    samples: Sequence[Sample]


def outliers(sightings: Iterable[Sighted], seen: Seen) -> Iterator[DriftFinding]:
    """`slow_edge` and `retried_edge`."""
    waits: dict[Edge, list[Sample]] = {}
    retries: dict[Edge, list[Sample]] = {}
    for each in sightings:
        value = Sample(each.at_ms, 0.0, each.trace_id, each.event.flow)
        since_ms = _since(each, seen)
        if since_ms is not None:
            wait_ms = max(0.0, each.at_ms - since_ms)  # clocks of two hosts
            waits.setdefault(each.edge, []).append(value._replace(value=wait_ms))
        if each.unit is not None and each.unit.attempts:
            retries.setdefault(each.edge, []).append(value._replace(value=float(each.unit.attempts > 1)))
    for edge, samples in waits.items():
        for usual_ms, worst_ms, evidence in _outlying(samples, _median_of, _slow):
            message = (
                f"usually after {usual_ms:.0f} ms (median), and after {worst_ms:.0f} ms at the worst time, in "
                f"windows with {evidence.count} of them"
            )
            yield evidence.finding("slow_edge", str(edge), message)
    for edge, samples in retries.items():
        for usual, worst, evidence in _outlying(samples, _share_of, _retried):
            message = (
                f"usually {usual:.1%} need another attempt, and {worst:.1%} at the worst time, in windows with "
                f"{evidence.count} of them"
            )
            yield evidence.finding("retried_edge", str(edge), message)


def _since(each: Sighted, seen: Seen) -> float | None:
    """An event waits from when it was sent, what it causes from when it was taken in."""
    if each.unit is not None:
        return each.event.at_ms
    cause = seen.events.get(each.event.cause or "")
    if cause is None:
        return None
    unit = seen.unit(cause.key, each.edge.service, each.edge.handler)
    return cause.at_ms if unit is None else unit.at_ms


def _outlying(
    samples: Sequence[Sample],
    figure: Callable[[Sequence[float]], tuple[float, float]],
    matters: Callable[[_Window, float], bool],
) -> Iterator[tuple[float, float, Evidence]]:
    """Baseline, worst figure, and what was seen in all outlying windows, if there is one."""
    windows = list(_windows(samples, figure))
    if len(windows) < WINDOWS_MIN:
        return
    baseline = median(each.figure for each in windows)
    spread = _MAD_TO_DEVIATION * median(abs(each.figure - baseline) for each in windows)
    found = [
        each
        for each in windows
        if each.figure - baseline > DEVIATIONS_MAX * max(spread, each.noise) and matters(each, baseline)
    ]
    if found:
        evidence = Evidence()
        for each in found:
            for sample in sorted(each.samples, key=lambda one: -one.value):
                evidence.add(sample.at_ms, sample.trace_id, sample.flow)
        yield baseline, max(each.figure for each in found), evidence


def _windows(
    samples: Sequence[Sample], figure: Callable[[Sequence[float]], tuple[float, float]]
) -> Iterator[_Window]:
    first_ms = min(each.at_ms for each in samples)
    length_ms = (max(each.at_ms for each in samples) - first_ms) / WINDOWS or 1.0
    by_window: dict[int, list[Sample]] = {}
    for each in samples:
        number = min(WINDOWS - 1, int((each.at_ms - first_ms) / length_ms))
        by_window.setdefault(number, []).append(each)
    # Chance is judged by all samples: those of one window may be all slow, and so all alike.
    _, noise = figure([each.value for each in samples])
    for _, alike in sorted(by_window.items()):
        if len(alike) >= SAMPLES_MIN:
            value, _ = figure([each.value for each in alike])
            yield _Window(value, noise / sqrt(len(alike)), alike)


def _median_of(values: Sequence[float]) -> tuple[float, float]:
    """Median, and the error that the median of one sample of them would have."""
    middle = median(values)
    return middle, _MEDIAN_ERROR * _MAD_TO_DEVIATION * median(abs(each - middle) for each in values)


def _share_of(values: Sequence[float]) -> tuple[float, float]:
    """Share, and the standard deviation of one of them."""
    share = sum(values) / len(values)
    bounded = min(max(share, SHARE_MIN), 1 - SHARE_MIN)
    return share, sqrt(bounded * (1 - bounded))


def _slow(window: _Window, usual_ms: float) -> bool:
    return window.figure > max(2 * usual_ms, usual_ms + WAIT_MS_MIN)


def _retried(window: _Window, usual: float) -> bool:
    return sum(each.value for each in window.samples) >= RETRIED_MIN
