"""Protections taken out one at a time: a simulation that is worth its time finds each."""

from tests.simulation.mutants.clients import CLIENTS
from tests.simulation.mutants.parking import PARKING
from tests.simulation.mutants.processes import PROCESSES
from tests.simulation.mutants.protections import PROTECTIONS

MUTANTS = (*PROTECTIONS, *PARKING, *PROCESSES, *CLIENTS)
