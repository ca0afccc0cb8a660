"""One definition, two interpreters that share no code: the same histories lead to the same states."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choreo import Event
from choreo.errors import Reject
from choreo.process import ProcessManager
from choreo.process.interpreting import Turn
from tests.unit import second_interpreter
from tests.unit.process_stage import Approval, ApprovalRequested, Approved, Driven, Rejected
from tests.unit.second_interpreter import Machine
from tests.unit.test_process import Called, Door, Knocked
from tests.unit.test_saga import (
    PLACED,
    CardCharged,
    CardDeclined,
    CardRefunded,
    GoodsShipped,
    NotShipped,
    StockRejected,
    StockReleased,
    StockReserved,
    checkout,
)

PAUSES_S = (1.0, 60.0, 600.0, 40_000.0, 90_000.0, 400_000.0)
STAGES: dict[str, tuple[type[ProcessManager], str, list[Event]]] = {
    "approval": (
        Approval,
        "r",
        [ApprovalRequested(request_id="r", manager="m"), Approved(request_id="r"), Rejected(request_id="r")],
    ),
    "door": (Door, "d", [Called(door="d"), Knocked(door="d"), Knocked(door="d", word="please")]),
    "saga": (
        checkout().manager,
        "o",
        [
            PLACED,
            StockReserved(order_id="o", shelf="s"),
            *(
                each(order_id="o")
                for each in (
                    CardCharged, CardDeclined, CardRefunded, GoodsShipped, NotShipped, StockRejected, StockReleased
                )
            ),
        ],
    ),
}  # fmt: skip
steps = st.lists(st.one_of(st.integers(0, 8), st.sampled_from(PAUSES_S)), max_size=25)


@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_both_interpreters_come_to_the_same_state(name: str, steps: list[int | float]) -> None:
    """After every step: state, timers that are set, and how many events wait; actions are called in one order."""
    manager, key, events = STAGES[name]
    called: list[str] = []
    driven = Driven(manager)
    for version in driven.process.versions.values():
        version.actions = {
            each.name: type(each)(each.name, _noting(called, each.name, each.function), each.wants, each.emits)
            for each in version.actions.values()
        }
    word = ""
    other = Machine(json.loads(manager.definition().model_dump_json()), lambda guard, type_: word == "please")
    refused = 0
    for step in steps:
        if isinstance(step, float):
            driven.wait(timedelta(seconds=step))
            other.sleep(step)
        else:
            event = events[step % len(events)]
            word = getattr(event, "word", "")
            try:
                driven.take(event)
            except Reject:
                refused += 1
            other.event(event.event_type)
        stored = driven.memory.kept.get((driven.process.name, key))
        assert (stored.state or None if stored else None) == other.where
        assert sorted(timer.name for timer in driven.memory.set.values()) == other.timers
        assert (len(json.loads(stored.deferred)) if stored else 0) == other.put_off
        assert refused == len(other.refused)
    assert called == other.log


def _noting(called: list[str], name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*given: Any) -> Any:
        called.append(name)
        return function(*given)

    return noted


def test_the_two_are_compared_for_real(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was put off never released, they differ."""
    monkeypatch.setattr(Turn, "_release", lambda self, key: None)
    with pytest.raises(AssertionError):
        test_both_interpreters_come_to_the_same_state("approval")


def test_the_second_interpreter_is_small_and_independent() -> None:
    """Under 200 lines, and it imports nothing of choreo."""
    source = Path(second_interpreter.__file__).read_text()
    assert source.count("\n") < 200
    assert "import choreo" not in source
    assert "from choreo" not in source
