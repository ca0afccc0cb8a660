"""What a mutant is."""

from collections.abc import Callable
from typing import NamedTuple

import pytest


class Mutant(NamedTuple):
    """A protection that is taken out.

    `flow`: `orders` or `parcels`. `pair`: see `choreo.testing.simulation.pairs`. `take_out` patches it away.
    """

    name: str
    what: str
    flow: str
    pair: str
    take_out: Callable[[pytest.MonkeyPatch], None]
