"""Orders of an operator: who gives them, the topics they go to, and how they are sent."""

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from choreo.errors import ConfigurationError
from choreo.ports import Clock, Transport
from choreo.record import ProducerRecord
from choreo.service import Service

BATCH = 500
BATCHES_A_SECOND = 10


@dataclass(frozen=True, slots=True)
class Operator:
    """Who orders, and what they say of it. `run` names one `force`: given again, it is the same run."""

    by: str
    note: str = ""
    run: str = field(default_factory=lambda: str(uuid.uuid4()))


@dataclass(slots=True)
class Orders:
    """What is to be sent, in order, and how much of what was asked for is not, by the reason."""

    records: list[ProducerRecord] = field(default_factory=list)
    handlers: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    impossible: Counter[str] = field(default_factory=Counter)


async def partitions_of_replays(
    transport: Transport, services: Sequence[Service], topic: Callable[[str], str]
) -> dict[str, int]:
    """How many partitions the replay topic of each service has, by service.

    Raises:
        ConfigurationError: One is not there.
    """
    names = {service.name: topic(service.replay_topic) for service in services}
    there = await transport.topics(list(names.values()))
    missing = sorted(name for name in names.values() if name not in there)
    if missing:
        raise ConfigurationError(
            f"the topic {', '.join(missing)} does not exist: create it with `choreo topics apply`, and start the "
            "service anew, which reads it only if it is there by then"
        )
    return {service: there[name].partitions for service, name in names.items()}


async def send(
    transport: Transport,
    records: Sequence[ProducerRecord],
    clock: Clock,
    *,
    rate: float | None = None,
    sent: Callable[[int], None] = lambda count: None,
) -> None:
    """Append records in order, at most `rate` a second; `sent` is told how many more there are.

    Raises:
        TransportError: What was told to `sent` is on the log; of the batch behind it some may be.
    """
    size = BATCH if rate is None else max(1, min(BATCH, int(rate / BATCHES_A_SECOND)))
    begun_s = clock.monotonic_s()
    for at in range(0, len(records), size):
        if rate is not None:
            await clock.sleep(max(0.0, begun_s + at / rate - clock.monotonic_s()))
        batch = records[at : at + size]
        await transport.send(batch)
        sent(len(batch))
