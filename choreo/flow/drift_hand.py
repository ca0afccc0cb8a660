"""What was done by hand: told as what it is, and not as a drift of whatever came of it. No I/O."""

from collections.abc import Collection, Iterable, Iterator

from choreo.flow.drift_edges import Sighted
from choreo.flow.drift_findings import DriftFinding, Evidence
from choreo.flow.drift_seen import ByHand, Seen

ENDING = frozenset({"set-state", "drop"})
"""Kinds after which a flow need not come to an end of its own: somebody has decided how it goes on, if it does."""


def interventions(seen: Seen, services: Collection[str]) -> Iterator[DriftFinding]:
    """`intervention`: of these services, of all if empty; what is alike is one."""
    alike: dict[tuple[str, str], list[ByHand]] = {}
    for each in seen.by_hand:
        if not services or each.service in services:
            alike.setdefault((each.service, each.what), []).append(each)
    for (service, what), found in alike.items():
        evidence = Evidence()
        for each in found:
            evidence.add(each.at_ms, "", each.flow)
        who = ", ".join(dict.fromkeys(each.who or "somebody" for each in found))
        why = f" ({found[-1].why})" if found[-1].why else ""
        yield evidence.finding("intervention", f"{service}: {what}", f"done by hand by {who}{why}")


def decisions(seen: Seen) -> dict[str, float]:
    """Flows, by correlation id, of which somebody has decided how they go on, and when first."""
    found: dict[str, float] = {}
    for each in seen.by_hand:
        if each.kind in ENDING and each.flow:
            found[each.flow] = min(each.at_ms, found.get(each.flow, each.at_ms))
    return found


def unforced(sightings: Iterable[Sighted], seen: Seen) -> list[Sighted]:
    """Without those of events that were replayed to the same service: how late they were says nothing of it."""
    replayed = {(each.event, each.service) for each in seen.by_hand if each.kind == "replay"}
    return [
        each
        for each in sightings
        if ((each.event.cause or "") if each.edge.emitted else each.event.key, each.edge.service) not in replayed
    ]
