"""What a return annotation says a handler may emit: of which classes, and how many."""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Union, get_args, get_origin

from choreo.errors import DeclarationError
from choreo.event import Event

Count = tuple[int, int | None]
"""How many events of one class a handler may return for one event: at least, at most; None is no bound."""
ANY: Count = (0, None)
NONE: Count = (0, 0)


class Emits(NamedTuple):
    """What a handler may emit for one event.

    Attributes:
        counts: How many of each class.
        at_least: How many in all, whichever of them: `A | B` promises one, though neither `A` nor `B`.
    """

    counts: Mapping[type[Event], Count]
    at_least: int


def declared_emits(label: str, hints: Mapping[str, Any]) -> Emits:
    """Event classes that a return annotation names, and how many.

    Raises:
        DeclarationError: There is none, or it names something else.
    """
    if "return" not in hints:
        raise DeclarationError(
            f"{label} has no return annotation, which declares what it may emit; write `-> None`, "
            "`-> StockReserved`, `-> A | B | None`, `-> list[A | B]`, or give emits= to the decorator"
        )
    found = _read(hints["return"])
    for each in found.counts:
        if not (isinstance(each, type) and issubclass(each, Event) and each.event_type):
            raise DeclarationError(
                f"{label}: its return annotation names {each!r}, which is no Event class with a type; "
                "a handler returns events, lists of events or None"
            )
    return found


def _read(hint: Any) -> Emits:
    """The types at the ends of unions and collections: `list[A] | B | None` -> A 0..*, B 0..1, at least none."""
    if hint in (None, type(None)):
        return Emits({}, 0)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (None, Callable):  # what a function takes is a list, and no hint
        return Emits({hint: (1, 1)}, 1)
    if origin is typing.Annotated:
        return _read(arguments[0])
    if origin in (Union, types.UnionType):
        ways = [_read(each) for each in arguments]
        return Emits(_joined(ways, min, max), min(way.at_least for way in ways))
    if origin is tuple and Ellipsis not in arguments:
        places = [_read(each) for each in arguments]
        return Emits(_joined(places, sum, sum), sum(place.at_least for place in places))
    if "Generator" in getattr(origin, "__name__", ""):
        arguments = arguments[:1]  # what is sent in or returned at the end is no emit
    several = [_read(each) for each in arguments if each is not Ellipsis]
    return Emits({leaf: ANY for each in several for leaf in each.counts}, 0)


def _joined(
    parts: Sequence[Emits], least: Callable[[list[int]], int], most: Callable[[list[int]], int]
) -> dict[type[Event], Count]:
    """The counts of one of several ways, or of several places together."""
    found: dict[type[Event], Count] = {}
    for leaf in dict.fromkeys(leaf for part in parts for leaf in part.counts):
        counts = [part.counts.get(leaf, NONE) for part in parts]
        bounds = [bound for _, bound in counts if bound is not None]
        found[leaf] = least([low for low, _ in counts]), most(bounds) if len(bounds) == len(counts) else None
    return found
