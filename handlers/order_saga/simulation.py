"""The saga in the simulated world of the mesh: `choreo simulate handlers.order_saga.simulation:simulation`."""

from dataclasses import replace

from ..order_fulfilment.simulation import simulation as mesh
from .app import app

HASTEN = 40.0
"""What is not undone is asked for again every 1.5 s."""

simulation = replace(mesh, app=app, hasten=HASTEN)
