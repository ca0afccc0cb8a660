"""What can go wrong with a simulation itself."""

from choreo.errors import ChoreoError


class Unsimulated(ChoreoError):
    """Code in a simulation reached for something real: a clock, randomness, a socket."""


class Stalled(ChoreoError):
    """Nothing can happen any more, and something is still waited for."""
