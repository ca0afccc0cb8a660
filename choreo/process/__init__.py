"""Process managers: persistent state machines over the events of the mesh, one a domain process."""

from choreo.process.declaring import ProcessManager
from choreo.process.joining import Join, join
from choreo.process.saga import Saga, Step
from choreo.process.states import Declared
from choreo.process.watching import FlowOverdue, Watch, overdue

__all__ = ["Declared", "FlowOverdue", "Join", "ProcessManager", "Saga", "Step", "Watch", "join", "overdue"]
