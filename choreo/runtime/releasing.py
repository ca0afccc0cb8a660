"""What an operator does about parked keys: hand the head of a queue to its handler once more, or drop it. Pure.

The order is a record of the topic of replays, and its own audit record, as that of any replay.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from choreo import envelope as cloudevents
from choreo.parked import Parked
from choreo.record import ProducerRecord
from choreo.runtime.ordering import Operator, Orders
from choreo.runtime.replaying import REPLAY_PREFIX, Replay, read_replay, replay_headers
from choreo.service import Service

What = Literal["head", "drop"]


def replay_of(head: Parked) -> Replay:
    """What gives the head of a queue to its handler."""
    replay = read_replay(head.record.headers)
    assert replay is not None
    return replay


def orders_for(
    service: Service, topic: str, heads: Sequence[Parked], what: What, operator: Operator, now_s: float
) -> Orders:
    """Orders to release the heads of a service's queues, or to drop them.

    Args:
        topic: Actual name of its topic of replays, which may have another name than when they were parked.
    """
    orders = Orders()
    for head in heads:
        replay = replay_of(head)
        if replay.parked == "closing" and what == "drop":
            orders.left_out["all of its queue is handled"] += 1
        elif replay.parked == "head" and what == "head" and head.handler not in service.handlers:
            gone = f"{service.name} has no handler {head.handler!r} any more: give one this name, or drop it"
            orders.impossible[gone] += 1
        else:
            about = what if replay.parked == "head" else replay.parked
            told = replace(replay, parked=about, by=operator.by, time=cloudevents.rfc3339(now_s), note=operator.note)
            orders.records.append(_ordered(head.record, topic, told))
            orders.handlers[f"{service.name}.{head.handler}"] += 1
    return orders


def _ordered(record: ProducerRecord, topic: str, replay: Replay) -> ProducerRecord:
    rest = [header for header in record.headers if not header[0].startswith(REPLAY_PREFIX)]
    return record._replace(topic=topic, headers=(*rest, *replay_headers(replay)))
