"""Publishing from outside of handlers: the event that begins a flow."""

from choreo.publisher.blocking import BlockingPublisher
from choreo.publisher.publishing import Publisher
from choreo.publisher.stamping import Reference

__all__ = ["BlockingPublisher", "Publisher", "Reference"]
