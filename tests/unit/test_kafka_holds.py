"""What cannot be read is left alone for longer each time. No broker is needed."""

from aiokafka.errors import KafkaConnectionError, OffsetOutOfRangeError, TopicAuthorizationFailedError
from aiokafka.structs import TopicPartition as KafkaPartition

from choreo.record import TopicPartition
from choreo.transports.kafka.holds import ABSENT_S, HOLD_S_MAX, Holds, culprits, unreadable
from choreo.transports.kafka.records import UnreadableBatch

ONE, TWO = TopicPartition("t", 1), TopicPartition("t", 2)


class Hands:
    """A clock that stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_hold_doubles_up_to_a_minute_and_is_forgotten_after_success() -> None:
    """It is due once, at its time, and counts as held until then."""
    clock = Hands()
    holds = Holds(clock)
    waits = []
    for _ in range(9):
        holds.add(ONE)
        assert ONE in holds
        assert TWO not in holds
        started_s = clock.now_s
        while not holds.due():
            clock.now_s += 1.0
        waits.append(clock.now_s - started_s)
        assert ONE not in holds
        assert holds.due() == []
    assert waits == [1, 2, 4, 8, 16, 32, HOLD_S_MAX, HOLD_S_MAX, HOLD_S_MAX]
    holds.forget(ONE)
    holds.add(ONE)
    clock.now_s += 1.0
    assert holds.due() == [ONE]


def test_held_partitions_do_not_wait_for_each_other() -> None:
    """Each has its own time; all are let go when others are ours."""
    clock = Hands()
    holds = Holds(clock)
    holds.add(ONE)
    clock.now_s += 0.5
    holds.add(TWO)
    clock.now_s += 0.5
    assert holds.due() == [ONE]
    holds.clear()
    assert TWO not in holds
    assert holds.due() == []


def test_absent_topic_is_told_after_a_while_and_ever_more_seldom() -> None:
    """One that comes back in time is never spoken of, and one that goes again begins anew."""
    clock = Hands()
    holds = Holds(clock)
    assert holds.absent(["a", "b"]) == []
    clock.now_s += ABSENT_S - 0.1
    assert holds.absent(["a"]) == []
    clock.now_s += 0.1
    assert holds.absent(["a", "b"]) == ["a"], "b was there for a moment"
    told = []
    for second in range(200):
        clock.now_s += 1.0
        if holds.absent(["a"]):
            told.append(second + 1)
    assert told == [2, 6, 14, 30, 62, 122, 182]
    assert holds.absent([]) == []
    assert holds.absent(["a"]) == []


def test_failed_fetch_is_about_the_partitions_it_names() -> None:
    """One partition, one topic, or, for an error of the connection, none of them."""
    ours = [TopicPartition("s", 0), ONE, TWO]
    assert culprits(OffsetOutOfRangeError({KafkaPartition("t", 1): 7}), ours) == [ONE]
    assert culprits(UnreadableBatch(KafkaPartition("t", 2), 5, 9, ValueError()), ours) == [TWO]
    assert culprits(TopicAuthorizationFailedError("t"), ours) == [ONE, TWO]
    assert culprits(UnreadableBatch(KafkaPartition("gone", 0), 5, 9, ValueError()), ours) == []
    assert culprits(KafkaConnectionError("lost"), ours) == []


def test_unreadable_batch_is_explained_without_its_content() -> None:
    """Where the group stands, why, and the offset behind the batch, or behind the first record."""
    error = UnreadableBatch(
        KafkaPartition("t", 2), 5, 9, UnicodeDecodeError("utf-8", b"hunter2\\xff", 7, 8, "invalid")
    )
    text = str(unreadable("g", error))
    assert text.startswith("t/2: group 'g' cannot read the batch at offset 5: UnicodeDecodeError.")
    assert text.endswith("kafka-consumer-groups.sh --group g --topic t:2 --reset-offsets --execute --to-offset 9")
    assert "hunter2" not in text
    assert str(unreadable("g", UnreadableBatch(KafkaPartition("t", 2), 5, None, ValueError()))).endswith(
        "--to-offset 6"
    )
