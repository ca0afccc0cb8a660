"""Services running in this process: what is asked for, what must be so before it starts, and the run of it."""

from choreo.running.plan import Plan, Settings, delay_topics
from choreo.running.preconditions import check_pair
from choreo.running.resources import Resources
from choreo.running.services import Running
from choreo.running.waking import timers_of

__all__ = ["Plan", "Resources", "Running", "Settings", "check_pair", "delay_topics", "timers_of"]
