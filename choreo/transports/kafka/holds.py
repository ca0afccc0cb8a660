"""What cannot be read now is left alone for a while, and for longer each time, so that all the rest goes on."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

from choreo.errors import TransportError
from choreo.record import TopicPartition
from choreo.transports.kafka.errors import reason
from choreo.transports.kafka.records import UnreadableBatch

HOLD_S_MIN, HOLD_S_MAX = 1.0, 60.0
"""The first and the longest pause: what is wrong is said as often, and no oftener."""

ABSENT_S = 3.0
"""So long a topic may be missing in the metadata, e.g. while it is being made, before that is an error."""


@dataclass(slots=True)
class _Hold:
    hold_s: float
    until_s: float
    over: bool = False


class Holds:
    """Partitions that are held, by when they are asked again.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._holds: dict[TopicPartition, _Hold] = {}
        self._absent: dict[str, _Hold] = {}

    def __contains__(self, partition: TopicPartition) -> bool:
        hold = self._holds.get(partition)
        return hold is not None and not hold.over

    def add(self, partition: TopicPartition) -> None:
        """It failed: hold it, twice as long as the last time."""
        last = self._holds.get(partition)
        hold_s = HOLD_S_MIN if last is None else min(2 * last.hold_s, HOLD_S_MAX)
        self._holds[partition] = _Hold(hold_s, self._clock() + hold_s)

    def due(self) -> list[TopicPartition]:
        """Those to be asked again; they are held no longer, but it is remembered that they were."""
        now_s = self._clock()
        found = [partition for partition, hold in self._holds.items() if not hold.over and hold.until_s <= now_s]
        for partition in found:
            self._holds[partition].over = True
        return found

    def forget(self, partition: TopicPartition) -> None:
        """It could be read, or is to be read elsewhere."""
        self._holds.pop(partition, None)

    def clear(self) -> None:
        """Other partitions are ours now."""
        self._holds.clear()

    def absent(self, topics: list[str]) -> list[str]:
        """Which of the topics now missing it is time to speak of: after ABSENT_S, then ever more seldom."""
        now_s = self._clock()
        self._absent = {
            topic: self._absent.get(topic) or _Hold(HOLD_S_MIN, now_s + ABSENT_S) for topic in sorted(topics)
        }
        due = [topic for topic, hold in self._absent.items() if hold.until_s <= now_s]
        for topic in due:
            hold_s = min(2 * self._absent[topic].hold_s, HOLD_S_MAX)
            self._absent[topic] = _Hold(hold_s, now_s + hold_s)
        return due


def culprits(error: BaseException, ours: Iterable[TopicPartition]) -> list[TopicPartition]:
    """Which of our partitions a failed fetch is about; none if it is about the connection."""
    if isinstance(error, UnreadableBatch):
        return [partition for partition in ours if partition == error.partition]
    if isinstance(error, OffsetOutOfRangeError) and error.args:
        return [partition for partition in ours if partition in error.args[0]]
    if isinstance(error, TopicAuthorizationFailedError) and error.args:
        return [partition for partition in ours if partition.topic == error.args[0]]
    return []


def unreadable(group: str, error: UnreadableBatch) -> TransportError:
    """What is wrong with the batch, and how to go on without it: there is no record to make a dead letter of."""
    topic, number = error.partition
    where = f"{error.partition}: group {group!r} cannot read the batch at offset {error.offset}"
    return TransportError(
        f"{where}: {reason(error.cause)}. The partition stands still, others go on. If it is sound, mend what keeps "
        f"this service from reading it (see docs/aiokafka-faults.md). Else stop the group and go on behind it: "
        f"kafka-consumer-groups.sh --group {group} --topic {topic}:{number} --reset-offsets --execute "
        f"--to-offset {error.offset + 1 if error.next_offset is None else error.next_offset}"
    )


def absent_topics(group: str, topics: list[str]) -> TransportError:
    """A topic that is gone: nothing of it will ever come, which would look as if there were nothing to do."""
    return TransportError(
        f"{', '.join(topics)}: no such topic any more for group {group!r}: was it deleted, or the right to describe "
        "it taken? Nothing of it is handled until it is there again (choreo topics apply)"
    )
