"""Python's garbage collector, and its turns between threads, in a process that choreo owns."""

import asyncio
import gc
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

ALLOCATIONS = 500_000
"""Objects made and not freed until Python itself looks through the young ones: not what is in flight at full load, a
hundred thousand, but what grows beside it. Python's own 700 are those of 20 events."""
COLLECT_S = 10.0
FULL_EVERY = 60
"""Every so manieth time the old ones too, which takes 0.2 s where ten million keys are held in memory."""
SWITCH_S = 0.0005
"""Until a thread that wants the interpreter is given it. SQLite's thread wants it after each statement, librdkafka's
after each call; Python's own 5 ms are those of a hundred events, each time."""


@asynccontextmanager
async def collecting_less() -> AsyncIterator[None]:
    """Never look again at what is loaded by now, and at what comes by the clock rather than by number.

    Some thousand events in flight are a hundred thousand objects, none of them garbage, which Python goes through
    again and again: a fifth of the CPU time of an event. Garbage is what failures leave, tracebacks mostly.

    The threads of store and client get their turn beside a busy event loop a tenth as late as Python would have it.
    """
    before, switch_s = gc.get_threshold(), sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    gc.set_threshold(ALLOCATIONS, 10, 10)
    sys.setswitchinterval(SWITCH_S)
    task = asyncio.create_task(_collect())
    try:
        yield
    finally:
        task.cancel()
        gc.unfreeze()
        gc.set_threshold(*before)
        sys.setswitchinterval(switch_s)


async def _collect() -> None:
    times = 0
    while True:
        await asyncio.sleep(COLLECT_S)
        times += 1
        gc.collect(1 if times % FULL_EVERY else 2)
