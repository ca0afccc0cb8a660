"""Each finding of drift, from the fewest sightings that show it, and from as many that do not."""

from collections.abc import Iterable, Sequence
from random import Random

import pytest

from choreo.flow.drift import Drift, compare
from choreo.flow.drift_findings import DriftFinding
from choreo.flow.drift_seen import Broken, ByHand, Seen, SeenEvent, SeenUnit, earliest, grouped
from choreo.flow.drift_traces import ratio
from choreo.flow.model import Capability, DeclaredFlow
from choreo.runtime import replaying
from tests.declared import declared

SHOP = declared(
    "stock.reserve: placed -> reserved? refused?",
    "billing.charge: reserved -> paid",
    "mail.confirm: paid -> ",
    starts="placed",
    ends="paid refused",
)
MINUTE_MS = 60_000.0
NOW_MS = 60 * MINUTE_MS
ALL = ("stock", "billing", "mail")


def event(
    type_: str, cause: str | None = None, *, service: str = "", at_ms: float = 0.0, name: str = "", **more: object
) -> SeenEvent:
    """An event named by its type, of the flow `f`."""
    made = SeenEvent(name or type_, type_, 1, "events", service, at_ms, cause, flow="f", trace_id="t")
    return made._replace(**more)  # type: ignore[arg-type]


def unit(event_: str, label: str, outcome: str = "handled", **more: object) -> SeenUnit:
    """What `service.handler` made of an event."""
    service, _, handler = label.partition(".")
    return SeenUnit(event_, service, handler, 1.0, outcome)._replace(**more)  # type: ignore[arg-type]


def seen(
    events: Iterable[SeenEvent], units: Iterable[SeenUnit] = (), *, told: Sequence[str] = ALL, **more: object
) -> Seen:
    """A window of an hour."""
    made = {
        "basis": "log and store",
        "from_ms": 0.0,
        "to_ms": NOW_MS,
        "events": earliest(events),
        "units": grouped(units),
        "told": frozenset(told),
    }
    return Seen(**{**made, **more})  # type: ignore[arg-type]


PLACED, RESERVED = event("placed"), event("reserved", "placed", service="stock", handler="reserve")
PAID = event("paid", "reserved", service="billing", handler="charge")
UNITS = (unit("placed", "stock.reserve"), unit("reserved", "billing.charge"), unit("paid", "mail.confirm"))
CLEAN = (PLACED, RESERVED, PAID)
NOT_SEEN = "placed v1 -> stock.reserve -> refused v1"


def places(found: Drift) -> list[tuple[str, str]]:
    """Ids and edges, but for what this small flow never shows."""
    return [(each.id, each.where) for each in found.findings if each.where != NOT_SEEN]


def test_clean_flow_shows_nothing() -> None:
    """All edges but one are seen, and all that are seen are declared."""
    found = compare(SHOP, seen(CLEAN, UNITS))
    assert places(found) == []
    assert (found.fitness, found.precision) == (1.0, round(5 / 6, 4))
    assert [each.where for each in found.findings] == [NOT_SEEN]
    assert found.flows[0][:3] == ("flow", 1, 1)


def test_undeclared_service_is_one_finding_whatever_it_does() -> None:
    """Not also an edge for each thing it does."""
    more = [*CLEAN, event("points", "paid", service="loyalty", at_ms=5.0)]
    found = compare(SHOP, seen(more, [*UNITS, unit("paid", "loyalty.earn")]))
    assert places(found) == [("undeclared_service", "loyalty")]
    assert (found.findings[0].count, found.findings[0].first_seen_ms, found.findings[0].last_seen_ms) == (2, 1.0, 5.0)
    assert found.fitness == round(5 / 7, 4)


def test_edge_of_another_cause_is_undeclared() -> None:
    """`billing.charge` may emit `paid`, but for `reserved`."""
    found = compare(SHOP, seen([PLACED, PAID._replace(cause="placed")], UNITS[:1], told=()))
    assert ("undeclared_edge", "placed v1 -> billing.charge -> paid v1") in places(found)


def test_handler_that_cannot_be_told_may_be_any_of_its_service() -> None:
    """By the log alone, an emission of a foreign id is the service's."""
    assert places(compare(SHOP, seen([PLACED, RESERVED._replace(handler=""), PAID], UNITS))) == []


def test_version_that_is_upcast_is_declared() -> None:
    """It is taken in, and so it is also missed."""
    (mail,) = (each for each in SHOP.services if each.name == "mail")
    events = tuple(each.model_copy(update={"version": 2, "upcasts_from": (1,)}) for each in mail.events)
    handlers = tuple(
        each.model_copy(update={"consumes": tuple(one.model_copy(update={"version": 2}) for one in each.consumes)})
        for each in mail.handlers
    )
    newer = mail.model_copy(update={"events": events, "handlers": handlers})
    others = tuple(each for each in SHOP.services if each.name != "mail")
    upcasting = SHOP.model_copy(update={"services": (*others, newer)})
    edge = ("never_observed_edge", "paid v2 -> mail.confirm")
    assert places(compare(upcasting, seen(CLEAN, UNITS))) == [edge]
    assert ("unconsumed_event", "paid v1 -> mail.confirm") in places(compare(upcasting, seen(CLEAN, UNITS[:2])))
    strict = newer.model_copy(
        update={"events": tuple(each.model_copy(update={"upcasts_from": ()}) for each in events)}
    )
    refused = SHOP.model_copy(update={"services": (*others, strict)})
    assert ("unknown_version", "paid v1 -> mail.confirm") in places(compare(refused, seen(CLEAN, UNITS)))


def test_violations_come_first() -> None:
    """Whatever rule they are of."""
    twice = [PAID, PAID._replace(key="again")]
    old = event("reserved", "placed", name="old", service="stock", handler="reserve", version=2)
    found = compare(SHOP, seen([PLACED, RESERVED, old, *twice], UNITS)).findings
    assert [each.id for each in found[:2]] == ["cardinality_exceeded", "cardinality_exceeded"]
    assert "unknown_version" in [each.id for each in found[2:]]


def test_version_that_nobody_tells_fits() -> None:
    """Spans of an older choreo do not say it."""
    unversioned = [each._replace(version=None) for each in CLEAN]
    assert places(compare(SHOP, seen(unversioned, UNITS))) == []


@pytest.mark.parametrize(("times", "exceeded"), [(1, False), (2, True)])
def test_more_than_declared_is_exceeded(times: int, exceeded: bool) -> None:
    """Different events for one cause; the same event twice is a duplicate."""
    paid = [PAID._replace(key=f"paid-{number}") for number in range(times)]
    units = [*UNITS[:2], *(unit(each.key, "mail.confirm") for each in paid)]
    found = compare(SHOP, seen([PLACED, RESERVED, *paid, *paid], units))
    edge = ("cardinality_exceeded", "reserved v1 -> billing.charge -> paid v1")
    assert places(found) == ([edge] if exceeded else [])


def test_declared_cycle_is_none() -> None:
    """A step that is declared to come again may come again; another one may not."""
    again = declared("ship.first: paid -> late?", "ship.again: late -> late? sent?", "ship.done: sent -> ")
    events = [event("paid"), event("late", "paid", service="ship", handler="first")]
    for cause, name in (("late", "l2"), ("l2", "l3")):
        events.append(event("late", cause, name=name, service="ship", handler="again"))
    assert "cycle" not in {each.id for each in compare(again, seen(events, told=())).findings}
    back = event("paid", "l3", name="p2", service="ship", handler="again")
    found = compare(again, seen([*events, back], told=()))
    assert ("cycle", "late -> paid -> late") in places(found)
    # Of another service: it is theirs to mend.
    other = compare(SHOP, seen([*events, back], told=()), services=["mail"])
    assert "cycle" not in {each.id for each in other.findings}


@pytest.mark.parametrize("handler", ["confirm", replaying.DECODE])
def test_unreadable_data_is_a_schema_violation(handler: str) -> None:
    """As the reader says it by its dead letter, whether a handler was found or not."""
    letter = unit("paid", f"mail.{handler}", "dead_letter", reason="invalid_data")
    found = compare(SHOP, seen(CLEAN, [*UNITS[:2], letter]))
    edge = "paid v1 -> mail" if handler == replaying.DECODE else "paid v1 -> mail.confirm"
    assert ("schema_violation", edge) in places(found)
    assert "unconsumed_event" not in {each.id for each in found.findings}
    rejected = compare(SHOP, seen(CLEAN, [*UNITS[:2], letter._replace(reason="rejected")]))
    assert "schema_violation" not in {each.id for each in rejected.findings}


def test_event_is_judged_after_the_timeout() -> None:
    """Before, it may be under way."""
    young = [each._replace(at_ms=NOW_MS - 5 * MINUTE_MS) for each in CLEAN[:2]]
    units = [unit("placed", "stock.reserve"), unit("reserved", "billing.charge")]
    ids = {each.id for each in compare(SHOP, seen(young, units), timeout_s=600.0).findings}
    assert "missing_emission" not in ids
    found = compare(SHOP, seen(young, units), timeout_s=240.0)
    assert ("missing_emission", "reserved v1 -> billing.charge") in places(found)


def test_event_that_nobody_handled_is_unconsumed() -> None:
    """Also while it is not finished; a dead letter, a duplicate or a delay is an explanation."""
    edge = ("unconsumed_event", "reserved v1 -> billing.charge")
    for units, expected in (
        (UNITS[:1], True),
        ((*UNITS[:1], unit("reserved", "billing.charge", "")), True),
        ((*UNITS[:1], unit("reserved", "billing.charge", "dead_letter", reason="rejected")), False),
        ((*UNITS[:1], unit("reserved", "billing.charge", "duplicate")), False),
        ((*UNITS[:1], unit("reserved", "billing.charge", "delayed")), False),
    ):
        found = compare(SHOP, seen(CLEAN[:2], units))
        assert (edge in places(found)) is expected, units
        assert "missing_emission" not in {each.id for each in found.findings}


def test_event_of_another_topic_is_not_for_the_handler() -> None:
    """The same type may lie in a topic that it does not read."""
    found = compare(SHOP, seen([PLACED._replace(topic="archive")]))
    assert "unconsumed_event" not in {each.id for each in found.findings}


@pytest.mark.parametrize(("basis", "judged"), [("log and store", False), ("traces", True)])
def test_key_that_may_be_forgotten_tells_nothing(basis: str, judged: bool) -> None:
    """After a week a store need not know an event any more; spans do not forget."""
    found = compare(SHOP, seen([PLACED], basis=basis, to_ms=8 * 24 * 60 * MINUTE_MS))
    assert ("unconsumed_event" in {each.id for each in found.findings}) is judged


def test_dead_letter_is_said_beside_what_is_missing() -> None:
    """Three are missing, and one is explained."""
    events, units = [], []
    for number in range(4):
        placed, reserved = f"p{number}", f"r{number}"
        events += [event("placed", name=placed), event("reserved", placed, name=reserved, service="stock")]
        outcome = ("dead_letter", "rejected") if number == 3 else ("handled", "")
        units += [unit(placed, "stock.reserve"), unit(reserved, "billing.charge", outcome[0], reason=outcome[1])]
    (found,) = (each for each in compare(SHOP, seen(events, units)).findings if each.id == "missing_emission")
    assert found.count == 3
    assert "1 others are dead letters (rejected), which explains those" in found.message


def keyed(capability: Capability, key: str = "order") -> Capability:
    """Handlers of stock know an event by a business key, which is the record's."""
    (stock,) = (each for each in capability.services if each.name == "stock")
    handlers = tuple(each.model_copy(update={"idempotency_key": "order"}) for each in stock.handlers)
    events = tuple(each.model_copy(update={"key": key}) for each in stock.events)
    changed = stock.model_copy(update={"handlers": handlers, "events": events})
    others = tuple(each for each in capability.services if each.name != "stock")
    return capability.model_copy(update={"services": (*others, changed)})


def test_order_placed_again_under_another_id_is_dropped_by_its_business_key() -> None:
    """Neither is the second one unconsumed, nor does its flow hang; with another key both would be."""
    late = declared_in(SHOP, 60.0)
    again = event("placed", name="again", flow="g", record_key="o-1")
    events = [*(each._replace(record_key="o-1") for each in CLEAN), again]
    found = compare(keyed(late), seen(events, UNITS))
    assert places(found) == []
    assert found.flows[0].started == 1
    found = compare(keyed(late), seen([*events[:3], again._replace(record_key="o-2")], UNITS))
    assert set(places(found)) == {("unconsumed_event", "placed v1 -> stock.reserve"), ("overdue_flow", "flow flow")}
    # Where the key is not the record's, nobody can tell.
    found = compare(keyed(late, key="customer"), seen([*events[:3], again._replace(record_key="o-2")], UNITS))
    assert ("unconsumed_event", "placed v1 -> stock.reserve") not in places(found)


def declared_in(capability: Capability, deadline_s: float) -> Capability:
    """The same, with a deadline."""
    flows: tuple[DeclaredFlow, ...] = tuple(
        each.model_copy(update={"deadline_s": deadline_s}) for each in capability.flows
    )
    return capability.model_copy(update={"flows": flows})


def test_flow_past_its_deadline_is_overdue() -> None:
    """It never ended, or it ended late; a flow in time, or one without a deadline, is neither."""
    in_time = compare(declared_in(SHOP, 3600.0), seen(CLEAN[:2]))
    assert "overdue_flow" not in {each.id for each in in_time.findings}
    assert "overdue_flow" not in {each.id for each in compare(SHOP, seen(CLEAN[:2])).findings}
    (never,) = overdue(seen(CLEAN[:2], UNITS[:1]))
    assert (never.where, never.count, never.level) == ("flow flow", 1, "violation")
    assert "1 came to no end within the 600 s it declares" in never.message
    (late,) = overdue(seen([*CLEAN[:2], PAID._replace(at_ms=11 * MINUTE_MS)], UNITS))
    assert "1 came to an end, but not within the 600 s" in late.message
    (dead,) = overdue(seen(CLEAN[:1], [unit("placed", "stock.reserve", "dead_letter", reason="rejected")]))
    assert "1 of them have a dead letter, which explains those" in dead.message
    (unsure,) = overdue(seen(CLEAN[:2], UNITS[:1], doubt="a tenth is sampled"))
    assert unsure.level == "inconclusive"


def overdue(found: Seen) -> list[DriftFinding]:
    """What is overdue with ten minutes."""
    return [each for each in compare(declared_in(SHOP, 600.0), found).findings if each.id == "overdue_flow"]


def by_hand(kind: str, at_ms: float = MINUTE_MS, **more: object) -> ByHand:
    """Somebody did something to the flow `f`."""
    made = ByHand("stock", kind, f"{kind} something", "ann", "why", at_ms, "f")
    return made._replace(**more)  # type: ignore[arg-type]


def test_flow_that_somebody_decided_on_in_time_is_not_overdue() -> None:
    """Before its deadline; after it, or by what only hastens it, or in another flow, it was overdue all the same."""
    for kind, at_ms, flow, count in (
        ("set-state", 9 * MINUTE_MS, "f", 0),
        ("drop", 9 * MINUTE_MS, "f", 0),
        ("drop", 11 * MINUTE_MS, "f", 1),
        ("set-state", 9 * MINUTE_MS, "g", 1),
        ("fire-timer", 9 * MINUTE_MS, "f", 1),
        ("replay", 9 * MINUTE_MS, "f", 1),
    ):
        assert len(overdue(seen(CLEAN[:2], UNITS[:1], by_hand=[by_hand(kind, at_ms, flow=flow)]))) == count, kind


def test_what_was_done_by_hand_is_told_as_that() -> None:
    """What is alike together, with who and the last reason; of the services that are judged."""
    done = [by_hand("drop"), by_hand("drop", 2 * MINUTE_MS, who="bob", why="late"), by_hand("drop", service="mail")]
    all_of_it = seen(CLEAN, UNITS, by_hand=done)
    (found,) = [each for each in compare(SHOP, all_of_it, services=["stock"]).findings if each.id == "intervention"]
    assert (found.id, found.level, found.where, found.count) == (
        "intervention",
        "information",
        "stock: drop something",
        2,
    )
    assert (found.message, found.correlation_ids) == ("done by hand by ann, bob (late)", ("f",))
    assert (found.first_seen_ms, found.last_seen_ms) == (MINUTE_MS, 2 * MINUTE_MS)
    assert [each.id for each in compare(SHOP, all_of_it).findings].count("intervention") == 2


def test_each_time_it_is_handled_a_handler_may_emit_what_it_declares() -> None:
    """What a forced replay emits counts by itself; two of one replay are one too many."""
    again = [RESERVED._replace(key=name, replay=name[0]) for name in ("a1", "b1")]
    ids = {each.id for each in compare(SHOP, seen([*CLEAN, *again], UNITS)).findings}
    assert "cardinality_exceeded" not in ids
    twice = [*again, again[0]._replace(key="a2")]
    (found,) = [
        each for each in compare(SHOP, seen([*CLEAN, *twice], UNITS)).findings if each.id == "cardinality_exceeded"
    ]
    assert found.count == 1


def test_hop_that_was_ordered_late_is_not_late() -> None:
    """Its event was replayed to that very service; to another one it would be late."""
    late = PAID._replace(at_ms=20 * MINUTE_MS)
    for service, expected in (("billing", False), ("mail", True)):
        order = by_hand("replay", 19 * MINUTE_MS, service=service, event="reserved")
        found = compare(SHOP, seen([*CLEAN[:2], late], UNITS, by_hand=[order]))
        assert (("late_hop", "reserved v1 -> billing.charge -> paid v1") in places(found)) == expected


def test_hop_that_comes_after_the_timeout_is_late() -> None:
    """It is not missing: it did come."""
    late = PAID._replace(at_ms=20 * MINUTE_MS)
    found = seen([*CLEAN[:2], late], UNITS)
    assert ("late_hop", "reserved v1 -> billing.charge -> paid v1") in places(compare(SHOP, found))
    assert places(compare(SHOP, found, timeout_s=1800.0)) == []


def test_cause_that_was_not_seen_breaks_the_trace() -> None:
    """By service; at less than all, whoever caused it may not have been sampled."""
    broken = [Broken("mail", 1.0, "f", "t"), Broken("mail", 2.0, "g", "u")]
    whole = compare(SHOP, seen(CLEAN, UNITS, broken=broken))
    (found,) = (each for each in whole.findings if each.id == "broken_trace")
    assert (found.where, found.count, found.level, found.trace_ids) == ("mail", 2, "information", ("t", "u"))
    sampled = seen(CLEAN, UNITS, broken=broken, sampled=0.1, doubt="10% of flows are sampled")
    (found,) = (each for each in compare(SHOP, sampled).findings if each.id == "broken_trace")
    assert found.level == "inconclusive"
    assert not [each for each in compare(SHOP, sampled, services=["stock"]).findings if each.id == "broken_trace"]


def test_only_the_services_asked_for_are_judged() -> None:
    """Another's edge, and what it did not handle, are not said."""
    events = [*CLEAN, event("points", "paid", service="billing", handler="charge")]
    letter = unit("paid", "mail.confirm", "dead_letter", reason="invalid_data")
    found = compare(SHOP, seen(events, [UNITS[0], letter]), services=["stock"])
    assert places(found) == []
    sender = compare(SHOP, seen(events, [UNITS[0], letter]), services=["billing"])
    assert ("schema_violation", "paid v1 -> mail.confirm") in places(sender)
    assert {each.id for each in compare(SHOP, seen(events, UNITS[:1])).findings} >= {"undeclared_edge"}


def many(slow: int = 0, retried: int = 0, count: int = 480, usual_ms: float = 40.0, unsteady: float = 0.0) -> Seen:
    """An hour of events; in the 20 minutes before the last, `slow` of ten are ten times slower, or are retried.

    With `unsteady` each few minutes are slower or faster than others.
    """
    dice = Random(7)
    events, units = [], []
    for number in range(count):
        at_ms = number * NOW_MS / count
        bad = NOW_MS * 0.6 < at_ms < NOW_MS * 0.9
        if number % (count // 24) == 0:
            times = dice.lognormvariate(0.0, unsteady)
        wait_ms = times * usual_ms * dice.lognormvariate(0.0, 0.5) * (10 if bad and number % 10 < slow else 1)
        attempts = 3 if (bad and number % 10 < retried) or dice.random() < 0.01 else 1
        events += [event("reserved", name=f"r{number}", at_ms=at_ms)]
        events += [event("paid", f"r{number}", name=f"p{number}", at_ms=at_ms + wait_ms, service="billing")]
        units += [unit(f"r{number}", "billing.charge", at_ms=at_ms, attempts=attempts)]
        units += [unit(f"p{number}", "mail.confirm", at_ms=at_ms + wait_ms, attempts=1)]
    return seen(events, units)


def outliers(found: Seen) -> set[tuple[str, str]]:
    """What differs from its own baseline."""
    findings = compare(SHOP, found).findings
    return {(each.id, each.where) for each in findings if each.id in ("slow_edge", "retried_edge")}


def test_edge_that_was_slower_for_a_while_is_an_outlier() -> None:
    """If all are ten times slower; not by chance, nor where it is a matter of a millisecond, nor of a few samples."""
    slow = {("slow_edge", "reserved v1 -> billing -> paid v1")}
    assert outliers(many(slow=10)) == slow
    assert outliers(many()) == set()
    assert outliers(many(slow=1)) == set()
    assert outliers(many(slow=10, usual_ms=0.5)) == set()
    assert outliers(many(slow=10, count=100)) == set()
    assert outliers(many(unsteady=0.6)) == set()


def test_edge_that_was_retried_more_for_a_while_is_an_outlier() -> None:
    """If half are retried, where one in a hundred is usual."""
    assert outliers(many(retried=5)) == {("retried_edge", "reserved v1 -> billing.charge")}


def test_ratio_sampler_is_known_by_what_it_leaves() -> None:
    """Of numbers that may lie anywhere, none is above the ratio; too few numbers show nothing."""
    dice = Random(3)
    numbers = [dice.random() for _ in range(2000)]
    assert ratio(numbers) is None
    assert ratio(numbers, [each for each in numbers if each < 0.1]) == pytest.approx(0.1, rel=0.05)
    assert ratio([each for each in numbers if each < 0.5]) == pytest.approx(0.5, rel=0.05)
    assert ratio([0.01, 0.02]) is None
    assert ratio([]) is None
