"""Where a process can be killed in the middle of its work, by name: `before store commit`, `after send`.

A point is a function of choreo, or of a client it uses, that does one durable sub-step. `arm` replaces it in this
process by one that ends the process with SIGKILL at its n-th call: nothing is flushed, closed or said.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from importlib import import_module
from typing import Any, NamedTuple

HANDLER = {"handler": "choreo.runtime.emitting:Emitter.emits"}
SQLITE_LOG = {
    "append": "choreo.sqlite.log:append",
    "offset in commit": "choreo.sqlite.log:commit_offsets",
}
"""Sub-steps inside the one transaction of the embedded pair."""
AIOKAFKA = {
    "send": "choreo.transports.kafka:KafkaTransport.send",
    "offset commit": "choreo.transports.kafka.consumer:KafkaConsumer.commit",
}
AIOKAFKA_TRANSACTION = {
    "begin": "aiokafka:AIOKafkaProducer.begin_transaction",
    "offset in transaction": "aiokafka:AIOKafkaProducer.send_offsets_to_transaction",
    "end of transaction": "aiokafka:AIOKafkaProducer.commit_transaction",
}

CONFLUENT_TRANSACTION = {
    "records in transaction": "choreo.transports.confluent.appending:Appending.append",
    "offset or end of transaction": "choreo.transports.confluent.transactions:until",
}
"""librdkafka's own calls cannot be replaced: the second one is around both the offsets and the commit."""


class CrashPoint(NamedTuple):
    """`moment` ("before" or "after") the `call`-th call, from 1, of `target`, written `module:Class.method`."""

    name: str
    moment: str
    target: str
    call: int = 1

    @property
    def title(self) -> str:
        """As it stands in reports."""
        return f"{self.moment} {self.name}"


def store_points(target: str, *, outbox: bool) -> dict[str, str]:
    """The sub-steps every store has; `target` is `module:Class`."""
    points = {"claim": f"{target}.claim", "store commit": f"{target}.commit"}
    return {**points, "outbox confirmed": f"{target}.sent"} if outbox else points


def both_moments(targets: Mapping[str, str]) -> Iterator[CrashPoint]:
    """Before and after each; before the handler is after the claim."""
    for name, target in targets.items():
        for moment in ("before", "after"):
            if (moment, name) != ("before", "handler"):
                yield CrashPoint(name, moment, target)


def arm(point: CrashPoint) -> None:
    """Kill this process at the point."""
    module_name, _, path = point.target.partition(":")
    owner: Any = import_module(module_name)
    *parents, attribute = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, attribute, _deadly(getattr(owner, attribute), point))


def _deadly(function: Callable[..., Any], point: CrashPoint) -> Callable[..., Any]:
    calls = 0

    def is_last() -> bool:
        nonlocal calls
        calls += 1
        if calls == point.call and point.moment == "before":
            _die()
        return calls == point.call

    @wraps(function)
    async def later(*arguments: Any, **options: Any) -> Any:
        last = is_last()
        result = await function(*arguments, **options)
        if last:
            _die()
        return result

    @wraps(function)
    def now(*arguments: Any, **options: Any) -> Any:
        last = is_last()
        result = function(*arguments, **options)
        if last:
            _die()
        return result

    return later if asyncio.iscoroutinefunction(function) else now


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
