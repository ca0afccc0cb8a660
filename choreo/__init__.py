"""Choreography over Kafka: independent idempotent services, atomic emits, one causal trace."""

from choreo.app import App
from choreo.context import Context
from choreo.core.retry import RetryPolicy
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError, Reject, RetryLater
from choreo.event import Command, Event
from choreo.publisher import Publisher, Reference
from choreo.service import Flow, Service

__all__ = [
    "App",
    "ChoreoError",
    "Command",
    "ConfigurationError",
    "Context",
    "DeclarationError",
    "Event",
    "Flow",
    "Publisher",
    "Reference",
    "Reject",
    "RetryLater",
    "RetryPolicy",
    "Service",
]
