"""The sections, in the order in which they are measured and written."""

from __future__ import annotations

from importlib import import_module
from typing import Any

SECTIONS = {
    "cost": "scripts.bench.cost",
    "points": "scripts.bench.points:Batches",
    "latency": "scripts.bench.latency",
    "waiting": "scripts.bench.points:Waiting",
    "partitions": "scripts.bench.points:Partitions",
    "payload": "scripts.bench.points:Payloads",
    "workers": "scripts.bench.workers",
    "embedded": "scripts.bench.embedded",
    "timers": "scripts.bench.timers",
    "parts": "scripts.bench.parts",
    "profiles": "scripts.bench.profiles",
    "keys": "scripts.bench.keys",
    "outbox": "scripts.bench.outbox",
    "architectures": "scripts.bench.architectures",
}
ONLY_WHEN_NAMED = ("outbox", "architectures")
"""Their figures are in pages of their own."""


def section(name: str) -> Any:
    """Has TITLE, measure(stage) -> what is found, as JSON takes it, and lines(found) -> Markdown."""
    module, _, inside = SECTIONS[name].partition(":")
    found = import_module(module)
    return getattr(found, inside) if inside else found
