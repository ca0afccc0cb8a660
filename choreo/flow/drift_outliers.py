"""An edge against its own baseline: windows of time in which it was slower, or retried more, than it usually is.

The time from an edge's first sighting to its last is cut into WINDOWS equal windows; of each that holds at least
SAMPLES_MIN samples the median wait, or the share of retried units, is one figure. With at least WINDOWS_MIN figures
their median is the baseline, and 1.4826 times their median absolute deviation (MAD; a standard deviation if they
are normal) is their spread. A figure further above the baseline than DEVIATIONS_MAX spreads is an outlier, if
chance alone would not do it and it is large enough to matter. For waits, chance is a spread too: the error of a
median of so many samples; and what matters is twice the baseline and WAIT_MS_MIN more. For shares, chance is the
binomial distribution's, below CHANCE_MAX; and what matters is RETRIED_MIN retried units.

Source: Leys et al., "Detecting outliers: Do not use standard deviation around the mean, use absolute deviation around
the median", J. Exp. Soc. Psychol. 49 (2013); the error of a median of n is 1.2533 s / sqrt(n) for normal samples.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import log, sqrt
from statistics import fmean, median
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
CHANCE_MAX = 1e-7
_MAD_TO_DEVIATION = 1.4826
_MEDIAN_ERROR = 1.2533


class Sample(NamedTuple):
    """One sighting: a wait in milliseconds, or 1.0 for a retried unit and 0.0 for any other."""

    at_ms: float
    value: float
    trace_id: str
    flow: str


class _Kind(NamedTuple):
    """What is made of samples.

    Attributes:
        figure: Of the values of one window.
        deviation: Of a figure by chance, times the root of the number of samples.
        matters: Whether a figure is large enough, by the baseline and the number of samples.
    """

    figure: Callable[[Sequence[float]], float]
    deviation: Callable[[Sequence[float]], float]
    matters: Callable[[float, float, int], bool]


def _wait_deviation(values: Sequence[float]) -> float:
    middle = median(values)
    return _MEDIAN_ERROR * _MAD_TO_DEVIATION * median(abs(each - middle) for each in values)


def _slow(wait_ms: float, usual_ms: float, _: int) -> bool:
    return wait_ms > max(2 * usual_ms, usual_ms + WAIT_MS_MIN)


def _no_chance(share: float, usual: float, count: int) -> bool:
    """Chernoff: a share so high has a chance below exp(-count * D), D its relative entropy to the usual one."""
    low = max(usual, SHARE_MIN)
    if share <= low or round(share * count) < RETRIED_MIN:
        return False
    others = 0.0 if share >= 1 else (1 - share) * log((1 - share) / (1 - low))
    return count * (share * log(share / low) + others) > -log(CHANCE_MAX)


_WAITS = _Kind(median, _wait_deviation, _slow)
_RETRIES = _Kind(fmean, lambda _: 0.0, _no_chance)


def outliers(sightings: Iterable[Sighted], seen: Seen) -> Iterator[DriftFinding]:
    """`slow_edge` and `retried_edge`."""
    waits: dict[Edge, list[Sample]] = {}
    retries: dict[Edge, list[Sample]] = {}
    for each in sightings:
        at_ms, trace_id, flow = each.at_ms, each.trace_id, each.event.flow
        since_ms = _since(each, seen)
        if since_ms is not None:
            wait_ms = max(0.0, at_ms - since_ms)  # clocks of two hosts
            waits.setdefault(each.edge, []).append(Sample(at_ms, wait_ms, trace_id, flow))
        if each.unit is not None and each.unit.attempts:
            retried = float(each.unit.attempts > 1)
            retries.setdefault(each.edge, []).append(Sample(at_ms, retried, trace_id, flow))
    for edge, samples in waits.items():
        for usual_ms, worst_ms, evidence in _outlying(samples, _WAITS):
            message = (
                f"usually after {usual_ms:.0f} ms (median), and after {worst_ms:.0f} ms at the worst time, in "
                f"windows with {evidence.count} of them"
            )
            yield evidence.finding("slow_edge", str(edge), message)
    for edge, samples in retries.items():
        for usual, worst, evidence in _outlying(samples, _RETRIES):
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


def _outlying(samples: Sequence[Sample], kind: _Kind) -> Iterator[tuple[float, float, Evidence]]:
    """Baseline, worst figure, and what was seen in all outlying windows, if there is one."""
    windows = [(kind.figure([each.value for each in alike]), alike) for alike in _windows(samples)]
    if len(windows) < WINDOWS_MIN:
        return
    baseline = median(figure for figure, _ in windows)
    spread = _MAD_TO_DEVIATION * median(abs(figure - baseline) for figure, _ in windows)
    chance = kind.deviation([each.value for each in samples])
    found = [
        (figure, alike)
        for figure, alike in windows
        if figure - baseline > DEVIATIONS_MAX * max(spread, chance / sqrt(len(alike)))
        and kind.matters(figure, baseline, len(alike))
    ]
    if found:
        evidence = Evidence()
        for _, alike in found:
            for sample in sorted(alike, key=lambda one: -one.value):
                evidence.add(sample.at_ms, sample.trace_id, sample.flow)
        yield baseline, max(figure for figure, _ in found), evidence


def _windows(samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    first_ms = min(each.at_ms for each in samples)
    length_ms = (max(each.at_ms for each in samples) - first_ms) / WINDOWS or 1.0
    by_window: dict[int, list[Sample]] = {}
    for each in samples:
        number = min(WINDOWS - 1, int((each.at_ms - first_ms) / length_ms))
        by_window.setdefault(number, []).append(each)
    return (alike for _, alike in sorted(by_window.items()) if len(alike) >= SAMPLES_MIN)
