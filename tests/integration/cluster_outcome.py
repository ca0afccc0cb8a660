"""What the topics of a service hold in the end: lost, duplicated, reordered, and how long it took."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import orjson

from choreo.record import Record


class Outcome(NamedTuple):
    """What the topics hold in the end, and how long it took.

    `pause_s`: longest time between two results of one partition. `delay_s`: longest from an event on its topic to its
    result on its own, sorted; both by the brokers' clock. `redone`: handlers begun beyond one an event.
    """

    lost: int
    duplicated: int
    reordered: int
    kept_wrongly: int
    pause_s: float
    delay_s: Sequence[float]
    redone: int
    by: Mapping[int, int]

    def figures(self) -> str:
        """One line for people."""
        p50, p99 = (self.delay_s[int(len(self.delay_s) * part)] for part in (0.5, 0.99))
        return (
            f"{len(self.delay_s)} events, lost {self.lost}, duplicated {self.duplicated}, "
            f"reordered {self.reordered}, redone {self.redone}, pause {self.pause_s:.1f} s, "
            f"delay p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, max {self.delay_s[-1]:.1f} s"
        )


def outcome_of(
    found: Sequence[Record],
    *,
    work: str,
    done: str,
    published: Collection[int],
    begun: int,
    rows: Counter[int] | None,
) -> Outcome:
    """Of all records of both topics; `begun`: handlers; `rows`: how often each number was written, if it was."""
    came: dict[int, int] = {}
    for record in found:
        if record.topic == work:
            came.setdefault(_event(record)["number"], record.timestamp_ms)
    results = sorted((each for each in found if each.topic == done), key=lambda each: each[:3])
    first: dict[int, Record] = {}
    for record in results:
        first.setdefault(_event(record)["number"], record)
    kept = Counter(first.keys()) if rows is None else rows
    return Outcome(
        len(set(published) - set(first)),
        len(results) - len(first),
        _reordered(first),
        sum(abs(kept[number] - 1) for number in {*first, *kept}),
        _pause_s(list(first.values())),
        sorted((record.timestamp_ms - came[number]) / 1000 for number, record in first.items()),
        begun - len(first),
        Counter(_event(record)["by"] for record in results),
    )


def _event(record: Record) -> dict[str, int]:
    found: dict[str, int] = orjson.loads(record.value or b"{}")
    return found


def _reordered(first: Mapping[int, Record]) -> int:
    last: dict[bytes | None, int] = defaultdict(lambda: -1)
    wrong = 0
    for number, record in first.items():  # as they are on the topic
        wrong += number < last[record.key]
        last[record.key] = max(number, last[record.key])
    return wrong


def _pause_s(results: Sequence[Record]) -> float:
    times: dict[int, list[int]] = defaultdict(list)
    for record in results:
        times[record.partition].append(record.timestamp_ms)
    gaps = [later - at for found in times.values() for at, later in pairwise(found)]
    return max(gaps, default=0) / 1000
