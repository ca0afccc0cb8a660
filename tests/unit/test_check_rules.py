"""Every finding of `choreo check`: there when it should be, at its place, and not when all is well."""

import re
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from choreo import App, Flow
from choreo.errors import ConfigurationError
from choreo.flow.advice import CHAIN_HANDLERS_MAX, FAN_OUT_HANDLERS_MAX, advice
from choreo.flow.consistency import consistency, shape
from choreo.flow.endless import endless
from choreo.flow.findings import LEVEL_OF, PAGE, Finding, silence
from choreo.flow.model import Capability, DeclaredService
from choreo.flow.released import against
from choreo.process import FlowOverdue, overdue
from handlers.approval.app import app as approval_app
from handlers.order_fulfilment.app import app as order_app
from tests.declared import declared
from tests.unit.test_saga import OrderCancelled, OrderPlaced, StockReserved, checkout

GOOD = declared("a.first: placed -> held? refused?", "b.second: held -> paid", starts="placed", ends="paid refused")


def found(findings: list[Finding]) -> set[tuple[str, str]]:
    """Ids and places."""
    return {(each.id, each.where) for each in findings}


def changed(capability: Capability, number: int, **changes: object) -> Capability:
    """With one service changed."""
    services = list(capability.services)
    services[number] = services[number].model_copy(update=changes)
    return capability.model_copy(update={"services": tuple(services)})


def with_events(capability: Capability, number: int, **changes: object) -> Capability:
    """With all events of one service changed."""
    service: DeclaredService = capability.services[number]
    return changed(capability, number, events=tuple(each.model_copy(update=changes) for each in service.events))


def test_nothing_is_found_where_all_is_well() -> None:
    """A flow whose events all lead to an end."""
    assert consistency(GOOD) == advice(GOOD) == against(GOOD, GOOD) == []


def test_shipped_flow_has_no_violation_and_no_advice() -> None:
    """What is shown to users follows its own rules; that it retries by event is said as information."""
    capability = order_app.capability()
    findings = [*consistency(capability), *advice(capability), *against(capability, capability)]
    assert found(findings) == {("cycle", "shipment.delayed")}


@pytest.mark.parametrize(
    ("lines", "starts", "ends", "expected"),
    [
        (["a.x: p -> q", "b.y: q r -> z"], "p", "z", ("unemitted_event", "r")),
        (["a.x: p -> q z"], "p", "z", ("unread_event", "q")),
        (["a.x: p -> q? z?", "b.y: q"], "p", "z", ("dead_end", "q")),
        (["a.x: p -> z", "b.y: q -> r", "c.w: r -> q"], "p", "z", ("unreachable_handler", "b.y")),
        (["a.x: p -> q?"], "p", "q z", ("unreachable_end", "flow")),
        (["a.x: p -> q z", "b.y: q -> p"], "p", "z", ("endless_cycle", "p")),
        (["a.x: p -> p"], "p", "p", ("endless_cycle", "p")),
        (["a.x: p -> q? z?", "b.y: q -> p"], "p", "z", ("cycle", "p")),
        (["a.x: p -> q"], "", "", ("no_flow", "flows")),
        (["a.x: p -> z@2 z", "b.y: z"], "p", "z", ("version_mismatch", "b.y")),
        (["a.x: p -> z@2", "b.y: z", "b.w: z@2"], "p", "z", ("version_mismatch", "b.y")),
        (["a.x: p -> q! z", "b.y: q!", "c.w: q!"], "p", "z", ("command_for_several", "q")),
    ],
)
def test_declarations_that_do_not_fit_are_found(
    lines: list[str], starts: str, ends: str, expected: tuple[str, str]
) -> None:
    """One wrong thing at a time, by its id and place."""
    assert expected in found(consistency(declared(*lines, starts=starts, ends=ends)))


def test_cycle_that_always_goes_on_is_not_reported_twice() -> None:
    """An endless cycle is a cycle, too; the worse of the two is said."""
    findings = shape(declared("a.x: p -> q z", "b.y: q -> p", starts="p", ends="z"))
    assert found(findings) == {("endless_cycle", "p")}


def test_cycle_that_one_handler_can_leave_is_not_endless() -> None:
    """`-> p` forever, but for the handler that may return None."""
    findings = shape(declared("a.x: p -> q? z?", "b.y: q -> p?", starts="p", ends="z"))
    assert found(findings) == {("cycle", "p")}


def test_outside_event_that_starts_a_flow_is_no_finding() -> None:
    """Nobody here emits it, and a Flow says that it comes from outside."""
    assert shape(declared("a.x: p -> z", starts="p", ends="z")) == []


def test_reader_of_a_version_nobody_emits_is_no_finding() -> None:
    """Old records are on the log."""
    assert consistency(declared("a.x: p -> z@2", "b.y: z@2 z", starts="p", ends="z")) == []


def test_topics_that_do_not_meet_are_found() -> None:
    """Emitted to one, read from another."""
    apart = elsewhere(GOOD)
    assert found(consistency(apart)) == {("topic_mismatch", "b.second")}
    also = declared("b.also: placed").services[0].handlers
    both = changed(apart, 1, handlers=(*apart.services[1].handlers, *also))
    assert found(consistency(both)) == set()  # types are found in whatever topic the service reads


def elsewhere(capability: Capability) -> Capability:
    """With the second service reading from another topic."""
    handler = capability.services[1].handlers[0]
    moved = tuple(ref.model_copy(update={"topic": "elsewhere"}) for ref in handler.consumes)
    return changed(capability, 1, handlers=(handler.model_copy(update={"consumes": moved}),))


@pytest.mark.parametrize(("key", "expected"), [("who", {("key_mismatch", "held")}), (None, set())])
def test_different_keys_of_one_event_are_found(key: str | None, expected: set[tuple[str, str]]) -> None:
    """A reader's class without a key says nothing of it."""
    assert found(consistency(with_events(GOOD, 1, key=key))) == expected


def test_two_services_in_one_group_are_found() -> None:
    """Each would miss the other's partitions."""
    assert found(consistency(changed(GOOD, 1, group="a"))) == {("shared_group", "a")}


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (declared("a.first: placed -> held? refused?"), {("vanished_service", "b"), ("dropped_type", "held")}),
        (declared("a.one: placed -> held? refused?", "b.second: held -> paid"), {("vanished_handler", "a.first")}),
        (changed(GOOD, 0, group="new"), {("changed_group", "a")}),
        (changed(GOOD, 0, source="/new"), {("changed_source", "a")}),
        (with_events(GOOD, 0, key="who"), {("changed_key", "a.held"), ("changed_key", "a.refused")}),
        (elsewhere(with_events(GOOD, 1, topic="new")), {("changed_topic", "b.held"), ("changed_topic", "b.paid")}),
        (declared("a.first: placed -> held? refused?", "b.second: held@2"), {("dropped_version", "b.second")}),
        (declared("a.first: placed -> held?", "b.second: held -> paid"), {("dropped_emission", "refused")}),
        (declared("a.first: placed -> held@2? refused?", "b.second: held held@2"), {("early_emission", "held")}),
        (
            declared("a.first: placed -> held?", "b.second: held -> paid refused"),
            {("narrowed_handler", "a.first")},
        ),
    ],
)
def test_what_a_deploy_would_break_is_found(now: Capability, expected: set[tuple[str, str]]) -> None:
    """Against the release, by id and place."""
    assert expected <= found(against(now, GOOD))


def test_version_that_is_upcast_is_still_read() -> None:
    """Neither what is emitted of it nor what is on the log goes to dead letters."""
    newer = declared(
        "a.first: placed -> held? refused?", "b.second: held@2 -> paid", starts="placed", ends="paid refused"
    )
    assert found(consistency(newer)) == {("version_mismatch", "b.second")}
    assert found(against(newer, GOOD)) == {("dropped_version", "b.second")}
    upcast = with_events(newer, 1, upcasts_from=(1,))
    assert consistency(upcast) == against(upcast, GOOD) == []


def test_changed_idempotency_key_is_found() -> None:
    """What was handled is not known as handled."""
    handler = GOOD.services[0].handlers[0].model_copy(update={"idempotency_key": "id"})
    assert found(against(changed(GOOD, 0, handlers=(handler,)), GOOD)) == {("changed_idempotency_key", "a.first")}


def test_renamed_handler_is_told_how_to_keep_its_name() -> None:
    """The new one that takes the same event is named."""
    renamed = declared("a.one: placed -> held? refused?", "b.second: held -> paid")
    (finding,) = against(renamed, GOOD)
    assert 'if it is one now, write name="first"' in finding.message


def test_what_is_new_breaks_nothing() -> None:
    """A service, a handler, a type and a version more."""
    more = declared(
        "a.first: placed placed@2 -> held? refused? noted?",
        "a.again: noted",
        "b.second: held -> paid",
        "c.third: paid",
    )
    assert against(on_topic(more, "noted", "notes"), GOOD) == []


def test_type_that_is_new_on_a_topic_the_release_reads_is_early() -> None:
    """The old build passes it over; not where its topic is new to the service, or nobody there takes it."""
    lines = ("a.first: placed -> held? refused? noted?", "b.second: held -> paid", "b.third: noted")
    (finding,) = against(declared(*lines), GOOD)
    assert (finding.id, finding.where) == ("early_emission", "noted")
    assert "b reads events and passes it over" in finding.message
    assert against(on_topic(declared(*lines), "noted", "notes"), GOOD) == []
    assert against(declared(*lines), declared("a.first: placed -> held? refused?", *lines[1:])) == []
    assert against(declared(*lines[:2]), GOOD) == []


def on_topic(capability: Capability, type_: str, topic: str) -> Capability:
    """With one type on the topic of another."""
    text = capability.model_dump()
    for service in text["services"]:
        refs = [ref for each in service["handlers"] for ref in (*each["consumes"], *each["emits"])]
        for ref in (*refs, *service["events"]):
            if ref["type"] == type_:
                ref["topic"] = topic
    return Capability.model_validate(text)


def test_type_that_moved_to_another_service_is_still_read() -> None:
    """Nobody has to hear of it twice: the vanished handler is said, and the type is not lost."""
    moved = declared("a.first: placed -> held? refused?", "b.other: x", "c.second: held -> paid")
    assert found(against(moved, GOOD)) == {("vanished_handler", "b.second")}


def coordinator(listening: bool) -> Capability:
    """One service takes eight of ten types."""
    types = "abcdefgh"
    lines = [f"god.on_{each}: {each}" + ("" if listening else f" -> {each}{each}?") for each in types]
    return declared(*lines, "x.one: i -> a", "y.two: j -> b")


def test_service_that_answers_most_events_is_found() -> None:
    """And one that only listens to them is not."""
    assert found(advice(coordinator(listening=False))) == {("god_service", "god")}
    assert advice(coordinator(listening=True)) == []


def test_two_services_that_do_the_same_are_found() -> None:
    """Two that merely listen to the same are not."""
    assert found(advice(declared("a.x: p -> q", "b.y: p -> q"))) == {("twin_services", "a,b")}
    assert advice(declared("a.x: p", "b.y: p")) == []


@pytest.mark.parametrize("branch", [False, True])
def test_long_chain_is_found_unless_it_branches(branch: bool) -> None:
    """One handler after the other, with nobody else who cares."""
    types = "abcdefghijkl"[: CHAIN_HANDLERS_MAX + 2]
    lines = [f"s_{one}.h: {one} -> {two}" for one, two in pairwise(types)]
    found_ids = [each.id for each in advice(declared(*lines, *(["audit.h: e"] if branch else [])))]
    assert found_ids == ([] if branch else ["long_chain"])
    assert advice(declared(*lines[:-1])) == []


def test_wide_fan_out_is_found() -> None:
    """One type and more handlers than anybody can ask before changing it."""
    lines = [f"s_{letter}.h: p" for letter in "abcdefghijkl"[: FAN_OUT_HANDLERS_MAX + 1]]
    assert found(advice(declared(*lines))) == {("wide_fan_out", "p")}
    assert advice(declared(*lines[:-1])) == []


def test_a_saga_that_nothing_but_an_answer_moves_on_is_found() -> None:
    """The steps without a time limit, unless a watch of the same app is on the flow; its end begins no flow."""

    def said(flow: Flow | None) -> list[tuple[str, str]]:
        watches = [] if flow is None else [overdue(flow)(tell)]
        return [(each.where, each.message) for each in endless(list(App(checkout(), *watches).processes.values()))]

    def tell(late: FlowOverdue) -> None: ...

    ((where, message),) = said(None)
    assert where == "checkout"
    assert "it waits in reserve-stock, ship-goods for the answer" in message, "the card's step has a timeout"
    day, other = timedelta(days=1), StockReserved
    assert said(Flow("order", starts=OrderPlaced, ends=OrderCancelled, deadline=day)) == []
    assert said(Flow("before", starts=other, ends=OrderPlaced, deadline=day)) == said(None)
    assert list(endless(list(approval_app.processes.values()))) == []


def test_findings_are_silenced_by_id_and_by_place() -> None:
    """An entry that silences nothing comes back."""
    findings = [Finding("cycle", "p", "m"), Finding("cycle", "q", "m"), Finding("unread_event", "x", "m")]
    assert silence(findings, ["cycle"]) == ([findings[2]], [])
    assert silence(findings, ["cycle:q", "unread_event:y"]) == ([findings[0], findings[2]], ["unread_event:y"])


def test_unknown_id_cannot_be_silenced() -> None:
    """A typing error would silence nothing, for ever."""
    with pytest.raises(ConfigurationError, match=r"--ignore cycel: there is no such id; there are: changed_group"):
        silence([], ["cycel"])


def test_every_id_has_a_section_and_every_section_an_id() -> None:
    """What a finding points to is there."""
    text = (Path(__file__).parent.parent.parent / PAGE).read_text()
    sections = dict(re.findall(r"^### (\w+)\n(\w+)\.", text, re.MULTILINE))
    assert sections == {id_: level.title() for id_, level in LEVEL_OF.items()}
