"""How long things took, kept in buckets until somebody collects: the SDK takes 7 us to put one number into one.

Only where the histogram takes Many at once, which is where the MeterProvider is ours: `choreo.telemetry.aggregating`.
To one of the application's own, which may have other buckets, each is given by itself.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import inf
from threading import Lock

from opentelemetry.metrics import Histogram

from choreo.telemetry.attributes import Attributes


class Many(float):
    """The sum of some durations, in seconds, with what else a histogram keeps of them.

    Attributes:
        buckets: How many there were of each.
        least, most: Of one of them.
    """

    buckets: Sequence[int]
    least: float
    most: float


class Durations:
    """What one histogram is given.

    Args:
        bounds: Where its buckets end; empty: it takes them one by one.
    """

    def __init__(self, histogram: Histogram, bounds: Sequence[float] = ()) -> None:
        self._histogram = histogram
        self._bounds = tuple(bounds)
        self._buckets: dict[tuple[tuple[str, object], ...], tuple[_Buckets, Attributes]] = {}

    def recorder(self, attributes: Attributes) -> Callable[[float], None]:
        """Told of each duration that has these attributes, in seconds."""
        if not self._bounds:
            return lambda took_s: self._histogram.record(took_s, attributes)
        name = tuple(sorted(attributes.items()))
        buckets, _ = self._buckets.setdefault(name, (_Buckets(self._bounds), attributes))
        return buckets.add

    def flush(self) -> None:
        """Give the histogram all that has been kept; on whichever thread collects."""
        for buckets, attributes in list(self._buckets.values()):
            many = buckets.take()
            if many is not None:
                self._histogram.record(many, attributes)


class _Buckets:
    """Durations since they were last taken."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._lock = Lock()
        self._clear()

    def _clear(self) -> None:
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum_s, self._least_s, self._most_s = 0.0, inf, -inf

    def add(self, took_s: float) -> None:
        """One more."""
        number = bisect_left(self._bounds, took_s)
        with self._lock:
            self._counts[number] += 1
            self._sum_s += took_s
            if took_s < self._least_s:
                self._least_s = took_s
            if took_s > self._most_s:
                self._most_s = took_s

    def take(self) -> Many | None:
        """All of them, and begin anew; None: there are none."""
        with self._lock:
            if self._most_s < 0:
                return None
            many = Many(self._sum_s)
            many.buckets, many.least, many.most = self._counts, self._least_s, self._most_s
            self._clear()
        return many
