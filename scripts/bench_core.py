"""What the engine's core costs a unit, as a ratio to a bare loop over a dict measured in the same run.

The ratio is what to compare between machines and commits; microseconds are those of this machine.
"""

import time
from collections.abc import Callable, Iterator

from choreo.core.engine import Engine
from choreo.core.messages import (
    Assigned,
    Claim,
    Claimed,
    Commit,
    Committed,
    Delivery,
    Effect,
    Fetched,
    Invoke,
    Returned,
)
from choreo.core.retry import RetryPolicy
from choreo.core.units import Unit
from choreo.ports import Claimed as Verdict
from choreo.record import TopicPartition

UNITS, BATCH, LANES, RUNS = 100_000, 500, 1_000, 3
PARTITION = TopicPartition("orders", 0)
FRESH = Verdict("fresh")


def units() -> list[Unit]:
    """Units of `LANES` keys in turn, ready to be fetched."""
    retry = RetryPolicy()
    return [
        Unit(
            PARTITION,
            offset,
            offset % LANES,
            "reserve",
            offset.to_bytes(16, "big"),
            b"12345678",
            correlation_id="flow",
            derived=True,
            transacts=False,
            retry=retry,
        )
        for offset in range(UNITS)
    ]


def engine_loop(work: list[Unit]) -> int:
    """Take every unit from fetch to commit; returns how many were committed."""
    engine, done = Engine(), 0
    engine.step(Assigned(PARTITION, 0), 0.0)
    for start in range(0, UNITS, BATCH):
        deliveries = [Delivery(unit.offset, 100, 0, (unit,)) for unit in work[start : start + BATCH]]
        queue: list[Effect] = engine.step(Fetched(PARTITION, deliveries, 0), 0.0)
        while queue:
            effects, queue = queue, []
            for effect in effects:
                if isinstance(effect, Invoke):
                    queue += engine.step(Returned(effect.unit, None), 0.0)
                elif isinstance(effect, Claim):
                    queue += engine.step(Claimed(effect.units, [FRESH] * len(effect.units)), 0.0)
                elif isinstance(effect, Commit):
                    done += len(effect.units)
                    queue += engine.step(Committed(effect.flush), 0.0)
    return done


def bare_loop(work: list[Unit]) -> int:
    """The least anybody could do: enter each key into a dict and take it out again."""
    keys: dict[bytes, Unit] = {}
    done = 0
    for unit in work:
        keys[unit.digest] = unit
        if keys.pop(unit.digest) is unit:
            done += 1
    return done


def seconds(loop: Callable[[list[Unit]], int]) -> Iterator[float]:
    """Wall-clock seconds of each run."""
    for _ in range(RUNS):
        work = units()
        begin_s = time.perf_counter()
        done = loop(work)
        yield time.perf_counter() - begin_s
        assert done == UNITS, done


def main() -> None:
    """Print one line for each loop."""
    bare_us, engine_us = (min(seconds(loop)) / UNITS * 1e6 for loop in (bare_loop, engine_loop))
    print(f"bare loop over a dict  {bare_us:8.3f} us a unit")
    print(f"engine core            {engine_us:8.3f} us a unit   {engine_us / bare_us:6.1f} x the bare loop")
    print(f"{UNITS:,} units, {LANES:,} lanes, batches of {BATCH}, best of {RUNS} runs each")


if __name__ == "__main__":
    main()
