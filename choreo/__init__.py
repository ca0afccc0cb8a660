"""Choreography over Kafka: independent idempotent services, atomic emits, one causal trace."""

from choreo.app import App
from choreo.context import Context
from choreo.core.breaker import Breaker
from choreo.core.retry import Delayed, RetryPolicy
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError, Reject, RetryLater
from choreo.event import Command, Event
from choreo.process import ProcessManager, Saga, Step, join
from choreo.publisher import Publisher, Reference
from choreo.service import Flow, Service

__all__ = [
    "App",
    "Breaker",
    "ChoreoError",
    "Command",
    "ConfigurationError",
    "Context",
    "DeclarationError",
    "Delayed",
    "Event",
    "Flow",
    "ProcessManager",
    "Publisher",
    "Reference",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "Saga",
    "Service",
    "Step",
    "join",
]
