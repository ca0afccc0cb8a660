"""Process managers: persistent state machines over the events of the mesh, one a domain process."""

from choreo.process.declaring import ProcessManager
from choreo.process.joining import Join, join
from choreo.process.saga import Saga, Step
from choreo.process.states import Declared

__all__ = ["Declared", "Join", "ProcessManager", "Saga", "Step", "join"]
