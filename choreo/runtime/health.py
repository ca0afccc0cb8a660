"""Whether a process is alive and whether it is ready, as an orchestrator of containers asks."""

from collections.abc import Iterable

from choreo.runtime.worker import Worker


def not_alive(workers: Iterable[Worker]) -> list[str]:
    """Why the process should be ended and started again; nothing while it lives.

    A loop that began no round for as long as a lease and a drain together hangs. A store or a broker that is down is
    no reason: its loops go round, and a new process would do no better.
    """
    found = []
    for worker in workers:
        name, ports = worker.service.name, worker.ports
        if worker.failure is not None:
            found.append(f"{name}: a bug stopped it: {type(worker.failure).__name__}")
        if worker.draining:
            continue  # bounded by itself
        for loop, beat_s in worker.beats.items():
            silent_s = ports.clock.monotonic_s() - beat_s
            if silent_s > ports.lease_s + ports.drain_s:
                found.append(f"{name}: its {loop} loop has been silent for {silent_s:.0f} s")
    return found


def not_ready(workers: Iterable[Worker]) -> list[str]:
    """Why the process takes no events; nothing once every service is in its group and none is draining."""
    found = []
    for worker in workers:
        if worker.draining:
            found.append(f"{worker.service.name}: draining")
        elif not worker.joined:
            found.append(f"{worker.service.name}: not in its group yet")
    return found
