"""What a mutant is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

import pytest

from choreo.testing.simulation import Simulation
from handlers.approval.simulation import simulation as approval
from handlers.ci_pipeline.simulation import simulation as ci_pipeline
from handlers.enrichment.simulation import simulation as enrichment
from handlers.order_fulfilment.simulation import simulation as orders
from handlers.order_saga.simulation import simulation as order_saga
from tests.simulation import parked_parcels
from tests.simulation.parcels import parcel_flow

FLOWS = {
    "approval": approval,
    "ci_pipeline": ci_pipeline,
    "enrichment": enrichment,
    "order_saga": order_saga,
    "orders": orders,
    "parked": parked_parcels.day(parked_parcels.app, "outbox"),
    "parked late": parked_parcels.late_day(),
}


class Mutant(NamedTuple):
    """A protection that is taken out.

    `flow`: one of `FLOWS`, or `parcels`. `pair`: see `choreo.testing.simulation.pairs`. `take_out` patches it away.
    `members` and `faults`, where what it protects from is rare: processes a service, and kinds made more likely.
    """

    name: str
    what: str
    flow: str
    pair: str
    take_out: Callable[[pytest.MonkeyPatch], None]
    members: int = 2
    faults: Mapping[str, float] = MappingProxyType({})

    def simulation(self) -> Simulation:
        """What is to find it."""
        found = parcel_flow(self.pair) if self.flow == "parcels" else replace(FLOWS[self.flow], pair=self.pair)
        return replace(found, members=self.members, faults=replace(found.faults, **self.faults))
