"""Deterministic simulation: an app's own services, unchanged, through any number of bad days, each from its seed."""

from choreo.testing.simulation.decorator import simulate
from choreo.testing.simulation.errors import Unsimulated
from choreo.testing.simulation.faults import Faults
from choreo.testing.simulation.simulation import Outcome, Simulation
from choreo.testing.simulation.world import World

__all__ = ["Faults", "Outcome", "Simulation", "Unsimulated", "World", "simulate"]
