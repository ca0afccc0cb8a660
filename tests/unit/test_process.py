"""A process driven event by event: states, timers, guards, what comes early, late or out of order."""

from datetime import timedelta

import pytest

from choreo import Event
from choreo.context import Context
from choreo.core.definition import DEFERRED_MAX, Definition
from choreo.errors import DeclarationError, Reject, StoreError, UndeclaredEmission
from choreo.process import ProcessManager
from tests.unit.process_stage import (
    Approval,
    ApprovalRequested,
    Approved,
    AskManager,
    Decided,
    Driven,
    Escalated,
    Rejected,
    ReminderDue,
)

DAY = timedelta(days=1)
REQUESTED = ApprovalRequested(request_id="r1", manager="ann")


def test_an_instance_goes_from_its_start_to_its_end() -> None:
    """Entry actions and rules emit; when it is over no timer is left."""
    driven = Driven(Approval)
    assert driven.take(REQUESTED) == [AskManager(request_id="r1", manager="ann")]
    assert driven.at("r1") == "waiting"
    assert sorted(timer.name for timer in driven.memory.set.values()) == ["escalate", "remind"]
    assert driven.take(Approved(request_id="r1")) == [Decided(request_id="r1", approved=True)]
    assert driven.at("r1") == "done"
    assert not driven.memory.set
    assert driven.memory.kept["approval", "r1"].ended


def test_a_repeating_timer_fires_so_often_and_state_is_kept() -> None:
    """A day apart, twice, counted in the instance's own field; then the other timer leads on."""
    driven = Driven(Approval)
    driven.take(REQUESTED)
    assert driven.wait(DAY * 0.9) == []
    assert driven.wait(DAY * 0.1) == [ReminderDue(request_id="r1", reminders=1)]
    assert driven.wait(DAY * 1.9) == [ReminderDue(request_id="r1", reminders=2)]
    assert driven.wait(DAY) == [Escalated(request_id="r1")]
    assert driven.at("r1") == "escalated"
    assert driven.wait(DAY * 100) == []
    assert driven.take(Rejected(request_id="r1")) == [Decided(request_id="r1", approved=False)]


def test_a_timer_that_was_cancelled_does_nothing() -> None:
    """It was due and on its way when the state was left; so was one that was set anew."""
    driven = Driven(Approval)
    driven.take(REQUESTED)
    timer = driven.memory.set["approval", "r1", "remind"]
    due = driven.process.due(key="r1", name="remind", token=timer.token, number=1)
    driven.take(Approved(request_id="r1"))
    assert driven.take(due) == []
    other = Driven(Approval)
    other.take(REQUESTED)
    stale = other.process.due(key="r1", name="remind", token="another", number=1)
    assert other.take(stale) == []
    assert other.memory.set["approval", "r1", "remind"].number == 1
    assert other.take(due.model_copy(update={"number": 2})) == []


def test_events_before_the_start_wait_for_it() -> None:
    """A decision that overtakes its request decides it as soon as it is there."""
    driven = Driven(Approval)
    assert driven.take(Approved(request_id="r1")) == []
    assert driven.memory.kept["approval", "r1"].state == ""
    emitted = driven.take(REQUESTED)
    assert emitted == [AskManager(request_id="r1", manager="ann"), Decided(request_id="r1", approved=True)]
    assert driven.at("r1") == "done"
    assert driven.memory.kept["approval", "r1"].deferred == b"[]"
    assert not driven.memory.set


def test_a_second_start_and_what_comes_late_are_passed_over() -> None:
    """Nothing changes, not even the revision."""
    driven = Driven(Approval)
    driven.take(REQUESTED)
    revision = driven.memory.kept["approval", "r1"].revision
    assert driven.take(ApprovalRequested(request_id="r1", manager="bob")) == []
    assert driven.memory.kept["approval", "r1"].revision == revision
    driven.take(Approved(request_id="r1"))
    assert driven.take(Rejected(request_id="r1")) == []
    assert driven.at("r1") == "done"


def test_an_instance_stored_by_somebody_else_meanwhile_is_not_overwritten() -> None:
    """The unit fails and is tried again; the store says so."""
    driven = Driven(Approval)
    driven.take(REQUESTED)
    old = driven.memory.kept["approval", "r1"]
    driven.memory.load = lambda process, key: old  # type: ignore[method-assign]
    driven.memory.kept["approval", "r1"] = old._replace(revision=7)
    with pytest.raises(StoreError, match="somebody else"):
        driven.take(Approved(request_id="r1"))


class Door(ProcessManager, version=1, by="door", unexpected="reject", late="reject"):
    """A door with a guard."""

    door: str
    tries: int = 0


class Knocked(Event, type="door.knocked", version=1, topic="doors", key="door"):
    """Somebody is there."""

    door: str
    word: str = ""


class Opened(Event, type="door.opened", version=1, topic="doors", key="door"):
    """Somebody is in."""

    door: str


class Called(Event, type="door.called", version=1, topic="doors", key="door"):
    """Somebody calls for the door."""

    door: str


shut, open_ = Door.state("shut"), Door.final("open")


def knows_the_word(self: Door, knocked: Knocked) -> bool:
    """Whether to open."""
    return knocked.word == "please"


@Door.starts(Called, to=shut)
def built(called: Called) -> Door:
    """There is a door."""
    return Door(door=called.door)


@shut.on(Knocked, to=open_, guard=knows_the_word)
def let_in(self: Door, knocked: Knocked) -> Opened:
    """It opens."""
    return Opened(door=self.door)


@shut.on(Knocked)
def keep_out(self: Door, knocked: Knocked, ctx: Context) -> None:
    """It does not."""
    self.tries += 1


def test_guards_decide_in_order_and_a_rule_may_stay_where_it_is() -> None:
    """The instance's fields are stored without a move, too."""
    driven = Driven(Door)
    driven.take(Called(door="d"))
    assert driven.take(Knocked(door="d", word="now")) == []
    assert driven.at("d") == "shut"
    assert b'"tries":1' in driven.memory.kept["door", "d"].data
    assert driven.take(Knocked(door="d", word="please")) == [Opened(door="d")]


def test_what_is_not_expected_is_rejected_if_the_process_says_so() -> None:
    """Early, late, or in a state that does not take it: to the dead letters, with the state named."""
    driven = Driven(Door)
    with pytest.raises(Reject, match=r"early: door.knocked in the state \(none\)"):
        driven.take(Knocked(door="d"))
    driven.take(Called(door="d"))
    with pytest.raises(Reject, match=r"unexpected: door.called in the state shut"):
        driven.take(Called(door="d"))
    driven.take(Knocked(door="d", word="please"))
    with pytest.raises(Reject, match=r"late: door\.knocked in the state open"):
        driven.take(Knocked(door="d"))


def test_an_instance_keeps_so_many_events_and_no_more() -> None:
    """One more is a dead letter, which nobody loses."""
    driven = Driven(Approval)
    for number in range(DEFERRED_MAX):
        driven.take(Rejected(request_id="r1", reason=str(number)))
    with pytest.raises(Reject, match=f"keeps {DEFERRED_MAX} events"):
        driven.take(Rejected(request_id="r1"))


def test_a_definition_is_data_and_comes_back_the_same() -> None:
    """As JSON, with states, timers, emits and the field that names an instance."""
    definition = Approval.definition()
    assert Definition.model_validate_json(definition.model_dump_json()) == definition
    assert definition.name == "approval"
    assert [state.name for state in definition.states] == ["waiting", "escalated", "done"]
    assert definition.state("waiting").timers[0].delay_s == 86_400
    assert definition.correlate["approval.approved"] == "request_id"
    assert definition.emits() == {
        "approval.ask", "approval.reminder-due", "approval.escalated", "approval.decided"
    }  # fmt: skip


def broken(**options: object) -> type[ProcessManager]:
    """A process without anything in it."""

    class Broken(ProcessManager, version=1, by="door"):
        door: str

    return Broken


def test_what_is_wrong_with_a_definition_is_told_all_at_once() -> None:
    """Unreachable, without a way out, in a circle, twice."""
    made = broken()
    lost, stuck = made.state("lost"), made.state("stuck")

    def begin(called: Called) -> made:  # type: ignore[valid-type]
        return made(door=called.door)

    def go(self: Door, knocked: Knocked) -> None: ...
    def went(self: Door, knocked: Knocked) -> None: ...

    begin.__annotations__["return"] = made
    made.starts(Called, to=stuck)(begin)
    stuck.on(Knocked)(go)
    stuck.on(Knocked)(went)
    lost.on(Knocked, to=stuck)(go)
    with pytest.raises(DeclarationError) as raised:
        made.definition()
    for said in (
        "no way leads to the state 'lost'",
        "no way leads out of the state 'stuck'",
        "the rule of went on door.knocked comes behind one without guard",
        "no state is final",
    ):
        assert said in str(raised.value)


def test_declarations_say_what_to_write_instead() -> None:
    """Wrong functions, events, names."""
    made = broken()
    state = made.state("shut")

    async def slow(self: Door, knocked: Knocked) -> None: ...
    def silent(self: Door, knocked: Knocked): ...  # type: ignore[no-untyped-def]
    def greedy(self: Door, knocked: Knocked, more: int) -> None: ...

    with pytest.raises(DeclarationError, match="slow must be a plain def"):
        state.on(Knocked)(slow)
    with pytest.raises(DeclarationError, match="silent has no return annotation"):
        state.on(Knocked)(silent)
    with pytest.raises(DeclarationError, match="greedy cannot be given 'more'"):
        state.on(Knocked)(greedy)
    with pytest.raises(DeclarationError, match="there is a state 'shut' already"):
        made.state("shut")
    with pytest.raises(DeclarationError, match="no field 'door'"):
        made.field_of(Approved)
    with pytest.raises(DeclarationError, match="longer than nothing"):
        state.after(timedelta(0))
    with pytest.raises(DeclarationError, match="by= names the field"):

        class Nameless(ProcessManager, version=1):
            pass


def test_a_start_that_makes_no_instance_is_a_permanent_error() -> None:
    """It says what to return."""

    class Empty(ProcessManager, version=1, by="door"):
        door: str

    there, gone = Empty.state("there"), Empty.final("gone")

    def begin(called: Called) -> Empty:
        return None  # type: ignore[return-value]

    def leave(self: Empty, knocked: Knocked) -> None: ...

    begin.__annotations__["return"], leave.__annotations__["self"] = Empty, Empty
    Empty.starts(Called, to=there)(begin)
    there.on(Knocked, to=gone)(leave)
    with pytest.raises(UndeclaredEmission, match="return a Empty"):
        Driven(Empty).take(Called(door="d"))


class Withdrawn(Event, type="approval.withdrawn", version=1, topic="approvals", key="request_id"):
    """Only version 3 takes it."""

    request_id: str


class ApprovalV3(ProcessManager, name="approval", version=3, by="request_id", previous=Approval):
    """Can be withdrawn."""

    request_id: str


at_work, over = ApprovalV3.state("waiting"), ApprovalV3.final("done")


@ApprovalV3.starts(ApprovalRequested, to=at_work)
def begun(requested: ApprovalRequested) -> ApprovalV3:
    """It begins."""
    return ApprovalV3(request_id=requested.request_id)


@at_work.on(Approved, Withdrawn, to=over)
def finish(self: ApprovalV3, event: Approved | Withdrawn) -> None:
    """It is over."""


@pytest.mark.parametrize("early", [True, False], ids=["before the start", "after it"])
def test_an_event_of_a_newer_version_harms_no_instance_of_an_older_one(early: bool) -> None:
    """Both builds keep it, for who moves the instance; what the instance takes is taken."""
    older, stranger = Driven(Approval), Withdrawn(request_id="r1")
    newer = Driven(ApprovalV3, older.memory)
    older.take(Rejected(request_id="r2"))  # kept: from here on r2 is of the older version
    if early:
        newer.take(Withdrawn(request_id="r2"))
        assert newer.take(ApprovalRequested(request_id="r2", manager="ann"))[-1] == Decided(
            request_id="r2", approved=False
        )
    older.take(REQUESTED)
    assert newer.take(stranger) == []
    assert older.wait(DAY) == [ReminderDue(request_id="r1", reminders=1)]
    assert newer.take(Approved(request_id="r1")) == [Decided(request_id="r1", approved=True)]
