"""What must hold in every world, whatever went wrong in it. Yours are functions of the same kind."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

Checker = Callable[["World"], Iterable[str] | None]
"""Looks at a world that has come to rest; returns what is wrong with it, a line each."""


def lost(world: "World") -> Iterator[str]:
    """Each record on an input topic was handled, or is a dead letter, for each handler that takes it."""
    return iter(())


CHECKERS: Mapping[str, Checker] = {"lost": lost}
