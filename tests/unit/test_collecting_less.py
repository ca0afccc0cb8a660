"""The garbage collector of a process that choreo owns: rarely, by the clock, and as it was afterwards."""

import asyncio
import gc
import weakref

import pytest

from choreo.runtime import collector


class Knot:
    """Garbage that only a collector finds."""

    def __init__(self) -> None:
        self.itself = self


async def test_what_goes_round_in_circles_is_freed_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector, "COLLECT_S", 0.01)
    before = gc.get_threshold()
    async with collector.collecting_less():
        assert gc.get_threshold()[0] == collector.ALLOCATIONS
        knot = weakref.ref(Knot())
        assert knot() is not None
        for _ in range(500):
            await asyncio.sleep(0.01)
            if knot() is None:
                break
        assert knot() is None
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


async def test_old_garbage_is_freed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was in use when it was looked at, and became garbage later, is looked at only in a full collection."""
    monkeypatch.setattr(collector, "COLLECT_S", 0.01)
    monkeypatch.setattr(collector, "FULL_EVERY", 3)
    async with collector.collecting_less():
        knot: Knot | None = Knot()
        found = weakref.ref(knot)
        gc.collect()  # it is old now
        knot = None
        for _ in range(500):
            await asyncio.sleep(0.01)
            if found() is None:
                break
    assert found() is None
