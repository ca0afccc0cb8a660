"""Suites for authors of adapters: inherit one in a class `Test...`, declare `guarantees`, make the thing.

    class TestMine(TransportConformance):
        guarantees = frozenset({"groups_share"})

        @asynccontextmanager
        async def transport(self) -> AsyncIterator[Transport]:
            ...

Needs pytest and pytest-asyncio with `asyncio_mode=auto`. A class does not have the tests of what it does not declare.
"""

from choreo.testing.conformance_instances import InstancesConformance
from choreo.testing.conformance_operated import OperatedConformance
from choreo.testing.conformance_pair import PairConformance
from choreo.testing.conformance_parked import ParkedConformance
from choreo.testing.conformance_shelf import StoreGuarantee
from choreo.testing.conformance_stage import Conformance, needs
from choreo.testing.conformance_store import StoreConformance
from choreo.testing.conformance_transport import TransportConformance, TransportGuarantee

__all__ = [
    "Conformance",
    "InstancesConformance",
    "OperatedConformance",
    "PairConformance",
    "ParkedConformance",
    "StoreConformance",
    "StoreGuarantee",
    "TransportConformance",
    "TransportGuarantee",
    "needs",
]
