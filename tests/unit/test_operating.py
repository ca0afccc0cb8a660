"""Instances changed by hand and moved between versions, on a store in memory."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from choreo import ProcessManager
from choreo.errors import ConfigurationError, DeclarationError, Reject
from choreo.flow.inflight import stranded
from choreo.instances import Count
from choreo.process.interpreting import Process
from choreo.process.operating import Hand, Moved, fire_timer, move, moved, path, set_state
from choreo.process.states import Declared
from tests.unit.process_stage import (
    START_MS,
    Approval,
    ApprovalRequested,
    Approved,
    AskManager,
    Decided,
    Driven,
    Escalated,
    Rejected,
    ReminderDue,
    waiting,
)

BY = Hand("ann", "a test")
DAY_MS = 86_400_000
ESCALATE_MS = START_MS + 3 * DAY_MS


def begun() -> Driven:
    """One approval that waits."""
    driven = Driven(Approval)
    driven.take(ApprovalRequested(request_id="r1", manager="bob"))
    return driven


def timers(driven: Driven) -> dict[str, int]:
    """When each is due, by name."""
    return {timer.name: timer.due_ms for timer in driven.memory.timers(driven.process.name, "r1")}


# ---- by hand


def test_a_timer_fired_by_hand_is_due_now_and_fires_once() -> None:
    """The rule is followed as if its time had come; what was done is told."""
    driven = begun()
    driven.memory.now_ms += 1_000
    done = fire_timer(driven.memory, driven.process, "r1", "escalate", BY)
    assert (done.what, done.who, done.why, done.correlation_id) == ("fire-timer escalate", "ann", "a test", "flow")
    assert driven.wait(timedelta(0)) == [Escalated(request_id="r1")]
    assert driven.at("r1") == "escalated"
    assert driven.wait(timedelta(days=9)) == []


def test_a_repeating_timer_fired_by_hand_goes_on_from_then() -> None:
    """The next one comes a day after it."""
    driven = begun()
    driven.memory.now_ms += 1_000
    fire_timer(driven.memory, driven.process, "r1", "remind", BY)
    assert driven.wait(timedelta(0)) == [ReminderDue(request_id="r1", reminders=1)]
    assert timers(driven)["remind"] == START_MS + 1_000 + DAY_MS


def test_a_timer_that_is_overdue_stays_as_it_is() -> None:
    """By hand it is never made later."""
    driven = begun()
    driven.memory.now_ms += 9 * DAY_MS
    fire_timer(driven.memory, driven.process, "r1", "escalate", BY)
    assert timers(driven)["escalate"] == ESCALATE_MS


def test_a_state_set_by_hand_has_its_own_timers_and_calls_nothing() -> None:
    """Those of the former state are gone, also if they are on their way already."""
    driven = begun()
    (old,) = [each for each in driven.memory.timers("approval", "r1") if each.name == "escalate"]
    set_state(driven.memory, driven.process, "r1", "escalated", BY)
    assert (driven.at("r1"), timers(driven)) == ("escalated", {})
    driven.memory.now_ms += 5_000
    done = set_state(driven.memory, driven.process, "r1", "waiting", BY)
    assert done.what == "set-state escalated -> waiting"
    assert timers(driven) == {"remind": START_MS + 5_000 + DAY_MS, "escalate": ESCALATE_MS + 5_000}
    due = driven.process.due(key="r1", name="escalate", token=old.token, number=1)
    assert driven.take(due) == []
    assert driven.wait(timedelta(days=1)) == [ReminderDue(request_id="r1", reminders=1)]


def test_an_entry_asked_for_is_called_once_by_the_service() -> None:
    """What it emits is emitted there."""
    driven = begun()
    done = set_state(driven.memory, driven.process, "r1", "waiting", BY, entry=True)
    assert done.what == "set-state waiting -> waiting with its entry"
    assert driven.wait(timedelta(0)) == [AskManager(request_id="r1", manager="bob")]
    assert sorted(timers(driven)) == ["escalate", "remind"]
    assert driven.wait(timedelta(hours=1)) == []


def test_events_that_wait_are_offered_to_a_state_set_by_hand() -> None:
    """Without an event of its own, and without its entry."""

    class Two(ProcessManager, version=1, by="request_id", name="two"):
        request_id: str

    first, second, end = Two.state("first"), Two.state("second"), Two.final("end")

    @Two.starts(ApprovalRequested, to=first)
    def begin(requested: ApprovalRequested) -> Two:
        return Two(request_id=requested.request_id)

    @first.after(timedelta(days=1), to=second)
    def go_on(self: Two) -> None: ...

    @second.on(Approved, to=end)
    def decided(self: Two, approved: Approved) -> Decided:
        return Decided(request_id=self.request_id, approved=True)

    driven = Driven(Two)
    driven.take(ApprovalRequested(request_id="r1", manager="m"))
    assert driven.take(Approved(request_id="r1")) == []
    set_state(driven.memory, driven.process, "r1", "second", BY)
    assert driven.wait(timedelta(0)) == [Decided(request_id="r1", approved=True)]
    assert (driven.at("r1"), timers(driven)) == ("end", {})


def test_a_final_state_set_by_hand_ends_the_instance() -> None:
    """No timer is left, and events that come are late."""
    driven = begun()
    set_state(driven.memory, driven.process, "r1", "done", BY)
    assert driven.memory.kept["approval", "r1"].ended
    assert timers(driven) == {}
    assert driven.take(Approved(request_id="r1")) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: set_state(d.memory, d.process, "r1", "nowhere", BY), "no state 'nowhere'; it has: waiting, esc"),
        (lambda d: set_state(d.memory, d.process, "r2", "done", BY), "no instance r2 of approval"),
        (lambda d: set_state(d.memory, d.process, "early", "done", BY), "has not begun"),
        (lambda d: fire_timer(d.memory, d.process, "r1", "nap", BY), "no timer 'nap'; it has: escalate, remind"),
        (lambda d: fire_timer(d.memory, d.process, "r2", "nap", BY), "no instance r2 of approval"),
    ],
)
def test_what_is_not_there_is_refused(change: Callable[[Driven], Any], said: str) -> None:
    """It says what there is, and changes nothing."""
    driven = begun()
    driven.take(Approved(request_id="early"))
    before = dict(driven.memory.kept), dict(driven.memory.set)
    with pytest.raises(ConfigurationError, match=said):
        change(driven)
    assert (driven.memory.kept, driven.memory.set) == before


# ---- versions


class V3(ProcessManager, name="approval", version=3, by="request_id", previous=Approval):
    """The manager has a deputy, and the escalation is called otherwise."""

    request_id: str
    manager: str
    deputy: str


asked, told, over = V3.state("asked"), V3.state("told"), V3.final("over")


@V3.starts(ApprovalRequested, to=asked)
def opened(requested: ApprovalRequested) -> V3:
    """It begins."""
    return V3(request_id=requested.request_id, manager=requested.manager, deputy="")


@asked.entry
def ask(self: V3) -> AskManager:
    """Not called when an instance is moved."""
    return AskManager(request_id=self.request_id, manager=self.manager)


@asked.after(timedelta(days=4), to=told)
def escalate(self: V3) -> Escalated:
    """Of the same name as in version 2."""
    return Escalated(request_id=self.request_id)


@asked.every(timedelta(days=2))
def nag(self: V3) -> None:
    """New."""


@asked.on(Approved, to=over)
@told.on(Approved, to=over)
def decide(self: V3, approved: Approved) -> Decided:
    """It is decided."""
    return Decided(request_id=self.request_id, approved=True)


@V3.migrate(from_version=2)
def from_v2(old: Approval, state: str) -> tuple[V3, Declared]:
    """By name of the state; who has no manager stays."""
    if old.manager == "nobody":
        raise Reject("there is nobody to ask")
    if old.manager == "wrong":
        return V3(request_id=old.request_id, manager="", deputy=""), waiting
    deputy: Any = None if old.manager == "none" else f"deputy of {old.manager}"
    at = {"waiting": asked, "escalated": told, "done": over}[state]
    return V3(request_id=old.request_id, manager=old.manager, deputy=deputy), at


def test_an_instance_is_moved_with_its_fields_state_and_timers() -> None:
    """A timer of the same name keeps its time, another is set from now on, the rest is gone; no entry is called."""
    old = begun()
    driven = Driven(V3, old.memory)
    driven.memory.now_ms += DAY_MS // 2
    result = move(driven.memory, driven.process, "r1", 3, BY)
    assert isinstance(result, Moved)
    assert result.done.what == "migrate v2 waiting -> v3 asked"
    assert (driven.at("r1"), driven.memory.kept["approval", "r1"].version) == ("asked", 3)
    assert b'"deputy":"deputy of bob"' in driven.memory.kept["approval", "r1"].data
    assert timers(driven) == {"escalate": ESCALATE_MS, "nag": START_MS + DAY_MS // 2 + 2 * DAY_MS}
    assert driven.wait(timedelta(days=2.5)) == [Escalated(request_id="r1")]
    assert driven.take(Approved(request_id="r1")) == [Decided(request_id="r1", approved=True)]
    assert move(driven.memory, driven.process, "r1", 3, BY) == ""


@pytest.mark.parametrize(
    ("manager", "said"),
    [
        ("nobody", "there is nobody to ask"),
        ("none", "from_v2 raised ValidationError: deputy"),
        ("wrong", "from_v2 returned something other than a V3 and a state of v3"),
    ],
)
def test_an_instance_that_cannot_be_moved_stays_as_it_is(manager: str, said: str) -> None:
    """With the reason, which quotes no values."""
    old = Driven(Approval)
    old.take(ApprovalRequested(request_id="r1", manager=manager))
    before = dict(old.memory.kept), dict(old.memory.set)
    assert move(old.memory, Process(V3), "r1", 3, BY) == said
    assert (old.memory.kept, old.memory.set) == before


def test_events_that_wait_and_are_unknown_to_the_version_keep_an_instance_where_it_is() -> None:
    """Else they would be lost, or fail for ever; one that has not begun goes as it is."""
    driven = Driven(Approval)
    driven.take(Rejected(request_id="r1"))
    driven.take(Approved(request_id="r2"))
    process = Process(V3)
    said = "events wait in it that v3 does not take: approval.rejected"
    assert moved(process, driven.memory.kept["approval", "r1"], 3) == said
    new = moved(process, driven.memory.kept["approval", "r2"], 3)
    assert new == driven.memory.kept["approval", "r2"]._replace(version=3)


def test_migrations_follow_each_other() -> None:
    """From version 2 to 4 by way of 3; straight where there is a straight way."""

    def version(number: int, *previous: type[ProcessManager]) -> type[ProcessManager]:
        class Made(ProcessManager, name="approval", version=number, by="request_id", previous=previous):
            request_id: str
            by_way_of: str = ""

        state, end = Made.state("state"), Made.final("end")

        @Made.starts(ApprovalRequested, to=state)
        def begin(requested: ApprovalRequested) -> Made:
            return Made(request_id=requested.request_id)

        @state.on(Approved, to=end)
        def decided(self: Made, approved: Approved) -> None: ...

        for each in previous:
            if number - each.process_version == 1:

                def step(old: Any, _: str) -> tuple[Made, Declared]:
                    return Made(request_id=old.request_id, by_way_of=f"{old.by_way_of}{number}"), state

                Made.migrate(from_version=each.process_version)(step)
        return Made

    one = version(1)
    two = version(2, one)
    three = version(3, one, two)
    four = version(4, one, two, three)
    driven = Driven(one)
    driven.take(ApprovalRequested(request_id="r1", manager="m"))
    process = Process(four)
    assert path(process, 1, 4) == [2, 3, 4]
    result = move(driven.memory, process, "r1", 4, BY)
    assert isinstance(result, Moved)
    assert b'"by_way_of":"234"' in result.instance.data
    four.migrate(from_version=1)(from_v2)
    assert path(process, 1, 4) == [4]
    assert path(process, 4, 3) is None


def test_migrate_is_checked_where_it_is_declared() -> None:
    """Of a version that is there, once, by a plain function."""
    with pytest.raises(DeclarationError, match="the versions in its previous= are 2"):
        V3.migrate(from_version=1)
    with pytest.raises(DeclarationError, match="there is from_v2 already"):
        V3.migrate(from_version=2)

    class V4(ProcessManager, name="approval", version=4, by="request_id", previous=Approval):
        request_id: str

    async def later(old: Approval, state: str) -> None: ...

    with pytest.raises(DeclarationError, match="must be a plain def"):
        V4.migrate(from_version=2)(later)


# ---- stranded


def test_instances_that_a_deploy_would_strand_are_named() -> None:
    """A version, a state and a timer that are not there, each once; what has ended or not begun is no matter."""
    found = [
        each.message
        for each in stranded(
            Process(V3),
            [
                Count(1, "waiting", False, None, 4, ("a", "b", "c")),
                Count(1, "waiting", False, "expire", 4, ("a", "b", "c")),
                Count(2, "gone", False, None, 1, ("d",)),
                Count(2, "gone", False, "nap", 1, ("d",)),
                Count(3, "asked", False, "remind", 2, ("e", "f")),
                Count(3, "asked", False, "(entry)", 2, ("e", "f")),
                Count(3, "asked", False, "nag", 2, ("e", "f")),
                Count(3, "asked", False, None, 2, ("e", "f")),
                Count(3, "", False, None, 2, ("g", "h")),
                Count(1, "ended", True, None, 99, ("i",)),
            ],
        )
    ]
    assert [each.split(":")[0] for each in found] == [
        "4 instances (a, b, c, ...) of approval v1 in the state waiting, and the app holds v2, v3",
        "1 instance (d) of approval v2 in the state gone, which that version has no more",
        "2 instances (e, f) of approval v3 in the state asked with the timer remind, which that state has no more",
    ]
