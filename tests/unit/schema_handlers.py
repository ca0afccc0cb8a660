"""Handlers by which a test says who emits and who consumes which event classes."""

from choreo.binding import BoundHandler, bind
from choreo.event import Event
from choreo.service import Service


class Ticked(Event, type="clock.ticked", version=1, topic="clock"):
    """What handlers of no interest consume."""


def emitting(*classes: type[Event], service: str = "maker") -> BoundHandler:
    """`maker.make`, which emits these and consumes `clock.ticked`."""
    return _bound(service, "make", (Ticked,), classes)


def consuming(*classes: type[Event], service: str = "reader") -> BoundHandler:
    """`reader.read`, which consumes these and emits nothing."""
    return _bound(service, "read", classes, ())


def _bound(service: str, name: str, events: tuple[type[Event], ...], emits: tuple[type[Event], ...]) -> BoundHandler:
    declared = Service(service)

    def function(event: Event) -> None: ...

    declared.handler(*events, name=name, emits=emits)(function)
    return bind(declared.handlers[name])
