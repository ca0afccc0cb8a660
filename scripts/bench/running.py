"""What a process that is measured is told, how it measures itself, and what it says."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

RUN_S_MAX = 150.0
FOR_EVER = 10**12


class Run(NamedTuple):
    """One loop to run.

    Attributes:
        loop: `choreo`, or one of `bare.LOOPS`.
        events: How many are handled; FOR_EVER: until the process is told to end.
        client: `kafka` (aiokafka) or `kafka+confluent`; of choreo.
        store: URL of choreo's store, or of the database of a bare loop that has one.
        work: order; wait: the same after 10 ms; rows: with a row of the handler's in the unit's transaction; parcel.
        batch: Events in a transaction at most, 0: as many as there are.
        telemetry: Sampled percent of the events, or empty.
        profile: File for a profile, or empty.
        group: Of choreo's service; what it creates has that in its name.
    """

    loop: str
    servers: str
    topic: str
    out: str
    events: int
    client: str = "kafka"
    store: str = ""
    work: str = "order"
    batch: int = 0
    concurrency: int = 0
    telemetry: str = ""
    profile: str = ""
    group: str = ""


class Result(NamedTuple):
    """CPU seconds of the process, all threads of it, and seconds, from the first record fetched to the last commit.

    `transactions`: of Kafka or of the database. `peak_mb`: the most memory it ever had, 10^6 bytes.
    """

    cpu_s: float
    wall_s: float
    transactions: int
    peak_mb: float


class Meter:
    """Time and CPU time of this process.

    `began` and `ended` are called with it: what profiles a run begins and ends there.
    """

    began: Callable[[], object] | None = None
    ended: Callable[[], object] | None = None

    def __init__(self) -> None:
        self.started = False
        self._cpu_s = self._wall_s = 0.0

    def start(self) -> None:
        """Now, unless it was started."""
        if not self.started:
            self.started = True
            if Meter.began is not None:
                Meter.began()
            self._cpu_s, self._wall_s = _cpu_s(), time.perf_counter()

    def stop(self, transactions: int) -> Result:
        """What it took until now."""
        cpu_s, wall_s = _cpu_s() - self._cpu_s, time.perf_counter() - self._wall_s
        if Meter.ended is not None:
            Meter.ended()
        return Result(cpu_s, wall_s, transactions, peak_mb())


def peak_mb() -> float:
    """The most memory this process has had. Linux's `ru_maxrss` is no good: a child begins with its parent's."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS: bytes
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
