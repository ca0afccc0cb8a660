"""Breakers: when they open and close, what they count, and the lanes that wait behind one."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core import messages as m
from choreo.core.breaker import Breaker, Circuit, Position
from choreo.core.units import Unit
from choreo.errors import DeclarationError, Reject, RetryLater
from tests.unit.driven_engine import Drive, P, invoked, make, of, transacts

BREAKER = Breaker(failures=3, pause_s=30)


def guarded(offset: int, lane: str | None = None, *, breaker: Breaker = BREAKER, **options: Any) -> Unit:
    """A unit of a handler with a breaker, in a lane of its own unless one is given."""
    unit = make(offset, lane or str(offset), attempts_max=100, **options)
    unit.breaker = breaker
    return unit


def down(drive: Drive, *units: Unit) -> list[m.Effect]:
    """Their handlers fail in a way that counts; the effects of all."""
    return [effect for unit in units for effect in drive.step(m.Raised(unit, "retry", "down", 1.0, trips=True))]


# ---- the declaration


@pytest.mark.parametrize(
    "options",
    [
        {"failures": 0},
        {"pause_s": 0},
        {"pause_s": 3_601},
        {"pause_s": float("nan")},
        {"on": ()},
        {"on": ("TimeoutError",)},
        {"on": (KeyboardInterrupt,)},
    ],
)
def test_breaker_that_cannot_work_is_refused(options: Any) -> None:
    """When it is written: the message says what is allowed."""
    with pytest.raises(DeclarationError, match=r"1 or more|names Exception classes"):
        Breaker(**options)


def test_breaker_counts_what_it_names() -> None:
    """By class and by those it derives from; what a handler asks for itself only where it is named."""
    assert Breaker().counts(KeyError)
    assert not Breaker().counts(RetryLater)
    assert not Breaker().counts(Reject)
    assert Breaker(on=(RetryLater,)).counts(RetryLater)
    network = Breaker(on=OSError)  # type: ignore[arg-type]  # one class is as clear
    assert network.counts(ConnectionResetError)
    assert not network.counts(ValueError)


# ---- the circuit alone


def test_circuit_opens_at_failures_in_a_row_only() -> None:
    """An attempt that came to its end in between begins the row anew."""
    circuit = Circuit(BREAKER)
    for outcome in (False, False, True, False, False):
        assert circuit.begin(0.0)
        if outcome:
            circuit.succeeded(probe=False)
        else:
            circuit.failed(0.0, probe=False)
    assert circuit.closed
    circuit.failed(5.0, probe=False)
    assert (circuit.position, circuit.until_s, circuit.opened) == (Position.OPEN, 35.0, 1)


def test_circuit_makes_one_probe_after_its_pause() -> None:
    """Not two, however many ask; it closes by a success and opens anew by a failure."""
    circuit = Circuit(Breaker(1, 30))
    circuit.failed(0.0, probe=False)
    assert not circuit.begin(29.9)
    assert circuit.begin(30.0)
    assert not circuit.begin(31.0)
    circuit.failed(40.0, probe=True)
    assert (circuit.position, circuit.until_s, circuit.opened) == (Position.OPEN, 70.0, 2)
    assert circuit.begin(70.0)
    circuit.succeeded(probe=True)
    assert circuit.closed
    assert circuit.begin(70.0)


def test_circuit_learns_nothing_of_attempts_that_began_before_it_opened() -> None:
    """Sixty-four handlers may be under way: their failures do not prolong the pause, nor does a success end it."""
    circuit = Circuit(Breaker(1, 30))
    circuit.failed(0.0, probe=False)
    circuit.failed(20.0, probe=False)
    circuit.succeeded(probe=False)
    assert (circuit.position, circuit.until_s, circuit.opened) == (Position.OPEN, 30.0, 1)


@given(st.lists(st.tuples(st.sampled_from(["begin", "failed", "succeeded", "unknown"]), st.floats(0, 40))))
def test_circuit_is_never_stuck(happenings: list[tuple[str, float]]) -> None:
    """Whatever happens, within a pause somebody may begin, unless a probe is under way; and never two probes are."""
    circuit, now_s, probes = Circuit(BREAKER), 0.0, 0
    for what, after_s in happenings:
        now_s += after_s
        if what == "begin":
            probes += circuit.begin(now_s) and circuit.position is Position.PROBING
        elif what == "succeeded":
            circuit.succeeded(probe=bool(probes))
            probes = 0
        else:
            getattr(circuit, what)(now_s, probe=bool(probes))
            probes = 0
        assert probes <= 1
        assert (circuit.position is Position.PROBING) == bool(probes)
        if not probes and circuit.position is Position.OPEN:
            assert circuit.until_s <= now_s + BREAKER.pause_s


# ---- in the engine


def test_lanes_wait_behind_an_open_breaker_and_use_no_attempt_up() -> None:
    """Five others are not tried; after the pause one is, and as it fails the rest still wait."""
    drive = Drive(m.Limits(concurrency=3))
    units = [guarded(offset) for offset in range(8)]
    assert invoked(drive.take(*units)) == [0, 1, 2]
    effects = down(drive, *units[:3])
    assert of(m.Broken, effects) == [m.Broken("reserve", 30)]
    assert [unit.attempts for unit in units] == [1, 1, 1, 1, 1, 0, 0, 0]  # two had begun meanwhile
    effects = down(drive, *units[3:5])
    assert not invoked(effects)
    assert not invoked(drive.tick(29))
    probing = drive.tick(1)
    assert len(invoked(probing)) == 1
    assert not invoked(drive.tick(100))
    probe = next(unit for unit in units if unit.offset == invoked(probing)[0])
    effects = down(drive, probe)
    assert of(m.Broken, effects) == [m.Broken("reserve", 30)]
    assert sum(unit.attempts for unit in units) == 6


def test_lanes_go_on_once_the_probe_has_succeeded() -> None:
    """All of them, at once, in their order within a lane."""
    drive = Drive()
    units = [guarded(offset) for offset in range(3)]
    drive.take(*units)
    down(drive, *units)
    later = [guarded(offset, f"lane {offset % 2}") for offset in range(3, 7)]
    assert not invoked(drive.take(*later))
    [probed] = invoked(drive.tick(30))
    effects = drive.back(next(unit for unit in (*units, *later) if unit.offset == probed))
    assert of(m.Broken, effects) == [m.Broken("reserve", None)]
    going = {*invoked(effects), probed}
    assert {0, 1, 2} <= going
    assert len(going & {3, 4, 5, 6}) == 2  # the head of each lane


def test_breaker_is_one_handlers_alone() -> None:
    """Another handler's events, and dead letters that need no handler, go by."""
    drive = Drive()
    units = [guarded(offset) for offset in range(3)]
    drive.take(*units)
    down(drive, *units)
    other, poison = make(3, "other"), guarded(4)
    other.handler, poison.poison = "release", "not_json"
    effects = drive.take(other, poison)
    assert invoked(effects) == [3]
    assert [effect.unit for effect in of(m.DeadLetter, effects)] == [poison]


def test_probe_that_is_taken_away_leaves_another_to_be_made() -> None:
    """Its partition went to another process before it came to an end: nobody knows, so the next one is to tell."""
    drive = Drive()
    units = [guarded(offset) for offset in range(3)]
    drive.take(*units)
    down(drive, *units)
    elsewhere = guarded(0, "elsewhere", partition=P._replace(partition=1))
    drive.take(elsewhere)
    drive.tick(30)
    assert [unit.attempts for unit in (*units, elsewhere)] == [2, 1, 1, 0]
    drive.step(m.Revoked([P]))
    assert elsewhere.attempts == 1


def test_breaker_holds_transactions_back_too() -> None:
    """Units that are invoked inside the store's transaction: none of them begins, and then one alone."""
    drive = Drive(m.Limits(transactions_max=1))
    units = [guarded(offset, transacts=True) for offset in range(5)]
    effects = drive.take(*units)
    first = transacts(effects)[0]
    raised = [m.Outcome(unit, raised=m.Raised(unit, "retry", "down", 1.0, trips=True)) for unit in first]
    effects = drive.step(m.Transacted(raised))
    assert len(first) >= 3
    assert not transacts(effects)
    assert not transacts(drive.tick(2))
    [[probe]] = transacts(drive.tick(28))
    effects = drive.step(m.Transacted([m.Outcome(probe, result="done")]))
    assert of(m.Broken, effects) == [m.Broken("reserve", None)]
    assert len(transacts(effects)[0]) == 4


def test_probe_that_was_not_invoked_leaves_another_to_be_made() -> None:
    """Its transaction failed before its turn came."""
    drive = Drive(m.Limits(transactions_max=1))
    units = [guarded(offset, transacts=True, breaker=Breaker(1, 30)) for offset in range(2)]
    [first] = transacts(drive.take(*units))
    drive.step(
        m.Transacted([m.Outcome(unit, raised=m.Raised(unit, "retry", "x", 1.0, trips=True)) for unit in first])
    )
    [[probe]] = transacts(drive.tick(30))
    drive.step(m.Transacted([m.Outcome(probe)], failed=True))
    assert len(transacts(drive.tick(1))) == 1
