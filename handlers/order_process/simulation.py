"""The process manager in the simulated world of the mesh.

`choreo simulate handlers.order_process.simulation:simulation`
"""

from dataclasses import replace

from ..order_fulfilment.simulation import simulation as mesh
from ..order_saga.simulation import checkers
from .app import app

HASTEN = 40.0
"""What is not undone is asked for again every 1.5 s, and money every 15."""

simulation = replace(mesh, app=app, hasten=HASTEN, checkers=checkers)
