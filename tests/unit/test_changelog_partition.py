"""One partition's keys, claims and what is written of them, without a log."""

from collections.abc import Sequence

import pytest

from choreo.errors import StoreError
from choreo.ports import ClaimRequest, Finished, Lease
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.changelog.commit import units_by_partition
from choreo.stores.changelog.packing import unpack
from choreo.stores.changelog.partition import HeldPartition
from tests.unit.test_changelog_packing import record

OURS, OTHER = TopicPartition("orders", 0), TopicPartition("orders", 1)
CHANGELOG = TopicPartition("orders.keys", 0)


def held() -> HeldPartition:
    return HeldPartition(Lease("g", OURS, 1, "me"), CHANGELOG)


def digest(number: int) -> bytes:
    return number.to_bytes(16, "big")


def requests(*numbers: int, fingerprint: bytes = b"f" * 8) -> list[ClaimRequest]:
    return [ClaimRequest(OURS, digest(each), fingerprint, "g.h", each, "c", 1_000 + each) for each in numbers]


def finished(number: int, emits: int, partition: TopicPartition = OURS, outcome: str = "handled") -> Finished:
    made = tuple(ProducerRecord("payments", b"k", b"%d/%d" % (number, each), ()) for each in range(emits))
    return Finished(partition, number, digest(number), made, outcome)


def commit(partition: HeldPartition, units: Sequence[Finished]) -> None:
    part = partition.part(units, None)
    assert part is not None
    partition.landed(part)


def test_claims_made_at_once_are_told_apart() -> None:
    """Those that are known, those of another payload, those that are fresh; what was claimed is claimed once."""
    partition = held()
    assert [each.verdict for each in partition.claim(requests(1, 2))] == ["fresh", "fresh"]
    commit(partition, [finished(1, 1), finished(2, 0)])
    assert partition.claims == 0
    assert [each.verdict for each in partition.claim(requests(3, 1, 4))] == ["fresh", "done", "fresh"]
    assert [each.verdict for each in partition.claim(requests(2, 5, fingerprint=b"g" * 8))] == ["conflict", "fresh"]
    assert partition.claims == 3


def test_what_is_written_of_units() -> None:
    """Emits in order, then one record of their keys; a unit that comes twice once, one that is known not at all."""
    partition = held()
    partition.claim(requests(1))
    commit(partition, [finished(1, 1)])
    partition.claim(requests(2, 3))
    two, three = finished(2, 2), finished(3, 1, outcome="dead_letter:rejected")
    part = partition.part([three, finished(1, 1), two, three], 4)
    assert part is not None
    *emits, keys = part.log_commit().records
    assert emits == [*three.emits, *two.emits]
    found = unpack(record(keys.key, keys.value))
    assert found.body[:32] == digest(3) + digest(2)
    assert (found.first_offset, found.newest_ms) == (2, 1_003)
    assert part.log_commit().offset == 4
    assert partition.part([finished(9, 1)], 4) is None, "never claimed"


def test_a_record_that_is_too_large_is_known_by_its_place_in_the_flush() -> None:
    """Behind tombstones, and between the units of another partition."""
    partition = held()
    partition.claim(requests(1, 2, 3))
    partition.tombstones = [b"o" * 24, b"p" * 24]
    flush = [finished(1, 2), finished(7, 3, OTHER), finished(2, 0), finished(8, 1, OTHER), finished(3, 2)]
    by_partition = units_by_partition(flush)
    assert {each: len(units) for each, units in by_partition.items()} == {OURS: 3, OTHER: 2}
    part = partition.part(by_partition[OURS], None)
    assert part is not None
    emits = [emit for unit in flush for emit in unit.emits]
    places = [partition.too_large(part, index, flush) for index in range(len(part.records))]
    assert [emits[place] for place in places if isinstance(place, int)] == part.records[2:-1]
    assert [isinstance(place, StoreError) for place in places] == [True] * 2 + [False] * 4 + [True]
    with pytest.raises(StoreError, match="does not take a record of"):
        raise next(place for place in places if isinstance(place, StoreError))
