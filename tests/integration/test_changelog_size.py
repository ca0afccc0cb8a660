"""A million keys: how long a restore takes, what a key takes, what an event costs beside a store that is small."""

import os
import statistics
import time
from collections.abc import Callable
from itertools import count

import pytest

from choreo.ports import ClaimRequest, CommitRequest, Finished, Lease
from choreo.record import ProducerRecord
from choreo.stores.changelog import ChangelogStore
from choreo.stores.changelog.packing import Key, pack
from tests.integration.changelog_stage import FINGERPRINT, ChangelogStage

KEYS, A_RECORD = 1_000_000, 100
RESTORED_WITHIN_S = 30.0
KEY_BYTES_MAX = 200
FLUSHES, A_FLUSH = 60, 500
COST_RATIO_MAX = 1.2


async def fill(stage: ChangelogStage, keys: int) -> None:
    """Write packed records as so many commits do."""
    where = stage.changelog()
    for begin in range(0, keys, 200 * A_RECORD):
        records = []
        for offset in range(begin, min(begin + 200 * A_RECORD, keys), A_RECORD):
            units = [Key(os.urandom(16), FINGERPRINT, offset, 1_000 + offset, "handled") for _ in range(A_RECORD)]
            ((packed, value),) = pack(units)
            records.append(ProducerRecord(where.topic, packed.record_key, value, (), where.partition))
        await stage.transport.send(records)


def resident_bytes() -> int:
    """Memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to see memory")
async def test_a_million_keys_are_restored_in_time_and_cost_no_more(
    kafka: str, record_property: Callable[[str, object], None]
) -> None:
    """Restored within 30 s; at most 200 bytes a key; an event costs at most 1.2 times what it does at 1,000 keys."""
    async with ChangelogStage(kafka) as large, ChangelogStage(kafka) as small:
        await fill(large, KEYS)
        await fill(small, 1_000)
        store, little = await large.store(), await small.store()
        before_bytes, began_s = resident_bytes(), time.monotonic()
        lease = await large.lease(store)
        took_s = time.monotonic() - began_s
        key_bytes = (resident_bytes() - before_bytes) / KEYS
        assert (await store.stats())[large.group].keys == KEYS
        few = await small.lease(little)
        numbers = count(KEYS)
        costs: tuple[list[float], list[float]] = ([], [])
        for _ in range(FLUSHES):  # in turns, so that a busy machine slows both
            costs[0].append(await cost_s(large, store, lease, numbers))
            costs[1].append(await cost_s(small, little, few, numbers))
        at_million, at_thousand = (statistics.median(each) / A_FLUSH * 1e6 for each in costs)
        figures = {
            "restore_s": round(took_s, 2),
            "bytes_a_key": round(key_bytes),
            "us_an_event_at_1e6": round(at_million, 1),
            "us_an_event_at_1e3": round(at_thousand, 1),
        }
        for name, figure in figures.items():
            record_property(name, figure)
        print(figures)
        assert took_s < RESTORED_WITHIN_S, figures
        assert key_bytes < KEY_BYTES_MAX, figures
        assert at_million < COST_RATIO_MAX * at_thousand, figures


async def cost_s(stage: ChangelogStage, store: ChangelogStore, lease: Lease, numbers: "count[int]") -> float:
    """CPU of one flush of new events, each with an emit: claims, transaction, the client's work in it."""
    offsets = [next(numbers) for _ in range(A_FLUSH)]
    digests = [os.urandom(16) for _ in offsets]
    emit = ProducerRecord(stage.output, b"k", bytes(200), ())
    began_s = time.process_time()
    requests = [
        ClaimRequest(lease.partition, each, FINGERPRINT, "s.h", offset, "flow", offset)
        for each, offset in zip(digests, offsets, strict=True)
    ]
    await store.claim([lease], requests)
    finished = [
        Finished(lease.partition, offset, each, (emit,), "handled")
        for each, offset in zip(digests, offsets, strict=True)
    ]
    await store.commit(CommitRequest({lease.partition: lease}, finished, {lease.partition: offsets[-1] + 1}))
    return time.process_time() - began_s
