"""A crash at every call of the small flow on every pair, and pairs of crashes; docs/crash-points.md has more."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest

from choreo.errors import ChoreoError
from choreo.ports import Start
from choreo.record import TopicPartition
from choreo.testing.simulation import Faults, World, simulation
from choreo.testing.simulation.crashes import Crashes, Trial, crash_points, double, evenly, single, try_one
from choreo.testing.simulation.faults import Dice
from choreo.testing.simulation.transport import SimulatedConsumer
from scripts.crash_table import PAIRS, SEED, Tried, few_parcels, page
from tests.simulation.mutants import protections

EMBEDDED_RUNS, PAIRED_RUNS = 20, 50
"""A run of the embedded broker takes four times as long, so that here it is crashed at some of its writes only."""

CRASHES = "crash", "crash_after"

each_pair = pytest.mark.parametrize("pair", PAIRS)


@pytest.fixture(autouse=True)
def short_days(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parcels are there in 4 virtual seconds; half the time to be crashed in saves half the heartbeats."""
    monkeypatch.setattr(simulation, "FAULTS_S", simulation.FAULTS_S / 2)


@cache
def singles(pair: str) -> Crashes:
    """All crashes, one a run."""
    if pair == "embedded":
        return single(few_parcels(pair), SEED, reads=False, runs_max=EMBEDDED_RUNS)
    return single(few_parcels(pair), SEED)


def clean(found: Crashes, pair: str) -> bool:
    """Nothing lost, nothing out of order, and copies only where the pair promises no more."""
    broken = found.lost, found.effects, found.out_of_order, found.other
    return not found.failing and broken == (0, 0, 0, 0) and (pair in ("lease", "outbox") or not found.copies)


@each_pair
def test_no_crash_breaks_a_promise(pair: str) -> None:
    """Before and after each call; they are felt: handlers run again, and sends do where the promise leaves room."""
    found = singles(pair)
    assert [each.violations for each in found.failing] == []
    assert clean(found, pair)
    assert found.again > 0
    assert (found.copies > 0) == (pair in ("lease", "outbox"))
    assert found.points > 100
    assert found.runs == (EMBEDDED_RUNS if pair == "embedded" else found.points)


@each_pair
def test_no_two_crashes_break_a_promise(pair: str) -> None:
    """Some of the pairs, evenly chosen; each is another one."""
    runs_max = PAIRED_RUNS // 5 if pair == "embedded" else PAIRED_RUNS
    found = double(few_parcels(pair), SEED, firsts=singles(pair), runs_max=runs_max)
    assert [each.violations for each in found.failing] == []
    assert clean(found, pair)
    assert found.runs == runs_max < found.points
    assert len({each.schedule for each in found.trials}) == runs_max
    assert found.again > 0


def restarts_read_on_at_the_end(patch: pytest.MonkeyPatch) -> None:
    """Committed offsets are not asked for, which nobody notices before a crash."""

    async def position(self: SimulatedConsumer, partition: TopicPartition, start: Start) -> int:
        return len(self._world.log.partitions[partition].entries)

    patch.setattr(SimulatedConsumer, "position", position)


@pytest.mark.parametrize(
    ("pair", "take_out", "column"),
    [
        ("lease", protections.ids_are_not_derived, "effects"),
        ("changelog", restarts_read_on_at_the_end, "lost"),
        ("outbox", protections.outbox_is_not_resent, "other"),
    ],
)
def test_a_protection_taken_out_is_seen(
    pair: str, take_out: Callable[[pytest.MonkeyPatch], None], column: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the column in which it belongs."""
    take_out(monkeypatch)
    found = single(few_parcels(pair), SEED, reads=False, runs_max=20)
    assert getattr(found, column) > 0
    assert found.failing


def test_what_is_sent_and_not_confirmed_is_sent_again() -> None:
    """With leases: a crash before the send leaves nothing there twice, one behind it does; and again the same."""
    before, after = (try_one(few_parcels("lease"), SEED, (f"{kind}@hub-1/send#1",)) for kind in CRASHES)
    assert (before.copies, before.violations) == (0, ())
    assert (after.copies > 0, after.violations) == (True, ())
    assert after == try_one(few_parcels("lease"), SEED, after.schedule)


def test_every_call_of_every_process_is_a_point() -> None:
    """Before it, and after it where it is more than a read; by and by is no call, and the publisher has none."""
    points = crash_points(few_parcels("changelog"), SEED)
    assert len(points) == len(set(points))
    assert {each.partition("@")[2].partition("/")[0] for each in points} == {"hub-1", "van-1", "handler"}
    for call in ("fence#1", "begin#1", "produce#1", "add offsets#1", "end#3"):
        assert {f"{kind}@van-1/{call}" for kind in CRASHES} <= set(points)
    street = few_parcels("changelog").publish(random.Random(0))[0].record_key() or b""
    place = f"handler/van.deliver/{street.decode().replace(' ', '_')}"
    assert {f"{kind}@{place}#1" for kind in CRASHES} <= set(points)
    assert [each for each in points if "position" in each and each.startswith("crash_after")] == []
    assert [each for each in points if "second" in each or "publish" in each] == []
    without = crash_points(few_parcels("changelog"), SEED, reads=False)
    assert [each for each in points if each not in without] == [each for each in points if "position" in each]


def test_more_visits_of_a_place_are_more_pairs() -> None:
    """All of the first visits are among those of two."""
    firsts = singles("changelog")
    few = replace(firsts, trials=firsts.trials[:3])
    one, two = (double(few_parcels("changelog"), SEED, firsts=few, visits_max=n, runs_max=1) for n in (1, 2))
    assert one.points < two.points


def test_a_crash_that_does_not_happen_is_an_error() -> None:
    """At a visit that there is not; those there are happen in whichever order of the kinds."""
    parcels = few_parcels("changelog")
    with pytest.raises(ChoreoError, match="asked for"):
        try_one(parcels, SEED, ("crash@hub-1/nowhere#1",))
    for kinds in (CRASHES, CRASHES[::-1]):
        schedule = tuple(f"{kind}@hub-1/fence#{number}" for number, kind in enumerate(kinds, 1))
        assert try_one(parcels, SEED, schedule).schedule == schedule


def test_a_run_that_fails_without_a_crash_has_no_points() -> None:
    """It says what is wrong, instead of blaming crashes for it."""

    def never(world: World) -> list[str]:
        return ["not today"]

    broken = replace(few_parcels("changelog"), checkers=(never,))
    with pytest.raises(ChoreoError, match="fails without a crash: never: not today"):
        crash_points(broken, SEED)


def test_visits_are_what_could_have_happened() -> None:
    """With a number of each place; none once the dice are off."""
    dice = Dice(1, Faults.none())
    for place in ("a", "b", "a"):
        dice.fault(place, ("crash",))
    dice.enabled = False
    dice.fault("a", ("crash",))
    assert dice.visits == [("a#1", ("crash",)), ("b#1", ("crash",)), ("a#2", ("crash",))]


def test_some_of_many_are_at_equal_distances() -> None:
    """The same ones each time; all, if there are no more."""
    assert evenly(range(10), 5) == [0, 2, 4, 6, 8]
    assert list(evenly(range(3), 5)) == [0, 1, 2]
    assert list(evenly(range(3), None)) == [0, 1, 2]


def test_the_page_has_a_row_for_each_kind_and_names_what_failed() -> None:
    """Of made-up results."""
    own, at = frozenset({"once"}), ("crash@hub-1/send#1",)
    bad = Trial((*at, "crash_after@hub-1/end#2"), ("lost: a", "once: b", "liveness: c", "twice: d"), 3, 4, ())
    one = Crashes(2, (Trial(at, (), 1, 2, ()), Trial(("crash_after@hub-1/send#1",), (), 5, 0, ())), own)
    text = page([Tried("lease", one, Crashes(1_000, (bad,), own), 1.0)], "seed 1")
    assert "| Kafka + Redis | 1 | 2 | 2 | 0 | 6 | 0 | 0 | 0 | 2 |" in text
    assert "| Kafka + Redis | 2 | 1,000 | 1 | 1 | 3 | 1 | 0 | 2 | 4 |" in text
    assert "1,000 there are; 1 were run, evenly chosen" in text
    assert "| Kafka + Redis | after send | 1 | 5 | 0 |" in text
    assert "`crash@hub-1/send#1 crash_after@hub-1/end#2`: lost: a" in text
