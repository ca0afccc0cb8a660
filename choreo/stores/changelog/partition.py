"""One input partition that is ours: its keys in memory, what is claimed, and what its next transaction writes."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from itertools import takewhile

from choreo.errors import StoreError, TransportError
from choreo.ports import Claimed, ClaimRequest, Finished, Lease, LogCommit, StoreStats, Transactions
from choreo.record import ProducerRecord, Record, TopicPartition
from choreo.stores.changelog.index import KeyIndex
from choreo.stores.changelog.packing import DIGEST_BYTES, Packed, first_digest, pack_columns, unpack

log = logging.getLogger("choreo.changelog")

Progress = Callable[[TopicPartition, int], None]
"""Called while an input partition is restored, with the number of keys read so far."""

FRESH = Claimed("fresh")
SAY_EVERY_S = 3.0
READ_ATTEMPTS_MAX = 5
READ_AGAIN_S = 1.0
RECORDS_AT_ONCE = 200
"""Taken in without a pause: 20 ms if each has 100 keys."""


class Part:
    """What one commit writes for the partition: tombstones, then the units' emits, then the records of keys.

    Attributes:
        units: Those whose emits and keys are written, in order.
        packed: The records of keys, as memory is to keep them.
        tombstones: How many of those queued are among the records.
    """

    def __init__(self) -> None:
        self.records: list[ProducerRecord] = []
        self.units: list[Finished] = []
        self.packed: list[Packed] = []
        self.tombstones = 0
        self.offset: int | None = None

    def log_commit(self) -> LogCommit:
        """As the log takes it."""
        return LogCommit(self.records, self.offset)

    def unit_of(self, index: int) -> tuple[Finished, int] | None:
        """Whose emit the record `index` is, and which of its emits; None of a record of keys or a tombstone."""
        index -= self.tombstones
        for unit in self.units:
            if 0 <= index < len(unit.emits):
                return unit, index
            index -= len(unit.emits)
        return None


class HeldPartition:
    """The keys of one input partition while we have its lease.

    Attributes:
        changelog: Where its keys are on the log.
        in_doubt: A transaction of it may or may not have been committed; `resolve` finds out.
        lock: Held while a transaction of it runs.
        progress_ms: Log time at its committed offset; None until told.
    """

    def __init__(self, lease: Lease, changelog: TopicPartition) -> None:
        self.lease = lease
        self.changelog = changelog
        self.index = KeyIndex()
        self.in_doubt = False
        self.lock = asyncio.Lock()
        self.progress_ms: int | None = None
        self.tombstones: list[bytes] = []
        self.committed_since_purge = False
        self._position = 0
        self._claims: dict[bytes, ClaimRequest] = {}
        self._offset: int | None = None

    @property
    def claims(self) -> int:
        """Units claimed and not committed."""
        return len(self._claims)

    # ---- from the log into memory

    async def restore(self, transactions: Transactions, progress: Progress | None) -> None:
        """Read the changelog from where it was read last to its end; a read that fails goes on from there."""
        began_s = said_s = time.monotonic()
        for attempt in range(1, READ_ATTEMPTS_MAX + 1):
            try:
                async for batch in transactions.read(self.changelog, self._position):
                    for begin in range(0, len(batch), RECORDS_AT_ONCE):
                        self._take_in(batch[begin : begin + RECORDS_AT_ONCE])
                        await asyncio.sleep(0)  # heartbeats, and other partitions, come between
                    if time.monotonic() - said_s >= SAY_EVERY_S:
                        said_s = time.monotonic()
                        self._say(said_s - began_s, progress)
                break
            except TransportError as error:
                if attempt == READ_ATTEMPTS_MAX:
                    raise
                log.warning("%s: reading from %d on failed, trying again: %s", self.changelog, self._position, error)
                await asyncio.sleep(READ_AGAIN_S)
        if progress is not None:
            progress(self.lease.partition, len(self.index))

    def _take_in(self, records: Sequence[Record]) -> None:
        for record in records:
            if record.value is None:
                self.index.remove(first_digest(record))
            else:
                self.index.add(unpack(record))
            self._position = record.offset + 1

    def _say(self, took_s: float, progress: Progress | None) -> None:
        log.info("%s: %d keys restored in %.0f s", self.changelog, len(self.index), took_s)
        if progress is not None:
            progress(self.lease.partition, len(self.index))

    async def resolve(self, transactions: Transactions) -> None:
        """Learn from the log whether a commit in doubt took place.

        The fence ends its transaction. Should somebody else have been the owner meanwhile, then what he committed is
        read as well, and he is fenced: whatever we commit after it, we commit as an owner that has read everything.
        """
        await transactions.fence([self.lease.partition])
        await self.restore(transactions, None)
        # What is known now may have been written anew behind a tombstone that is in the queue still.
        self.tombstones = [key for key in self.tombstones if self.index.fingerprint(key[-DIGEST_BYTES:]) is None]
        self._claims = {key: each for key, each in self._claims.items() if self.index.fingerprint(key) is None}
        self._offset = None
        self.in_doubt = False

    # ---- units

    def claim(self, requests: Sequence[ClaimRequest]) -> list[Claimed]:
        """Whether each key is known; if not, what its record on the log will say of it is remembered."""
        digests = [request.digest for request in requests]
        if self.index.knows_any(digests):
            return [self._claim(request) for request in requests]
        self._claims.update(zip(digests, requests, strict=True))
        return [FRESH] * len(requests)

    def _claim(self, request: ClaimRequest) -> Claimed:
        known = self.index.fingerprint(request.digest)
        if known is not None:
            return Claimed("done" if known == request.fingerprint else "conflict")
        self._claims[request.digest] = request
        return FRESH

    def part(self, units: Sequence[Finished], offset: int | None) -> Part | None:
        """What to write of these units; None if one is not claimed.

        Units whose keys are known were written by this very request, which is repeated: nothing of them is.
        """
        part = Part()
        self._bury(part)
        written: dict[bytes, ClaimRequest] = {}
        for unit in units:
            digest = unit.digest
            claim = self._claims.get(digest)
            if claim is None:
                if self.index.fingerprint(digest) is None:
                    return None
            elif digest not in written:
                written[digest] = claim
                part.records += unit.emits
                part.units.append(unit)
        fingerprints = [claim.fingerprint for claim in written.values()]
        times_ms = [claim.timestamp_ms for claim in written.values()]
        offsets, outcomes = [unit.offset for unit in part.units], [unit.outcome for unit in part.units]
        topic, number = self.changelog
        for packed, value in pack_columns(list(written), fingerprints, offsets, times_ms, outcomes):
            part.records.append(ProducerRecord(topic, packed.record_key, value, (), number))
            part.packed.append(packed)
        if offset is not None and offset != self._offset:
            part.offset = offset
        return part

    def burial(self) -> Part:
        """A transaction of tombstones alone."""
        part = Part()
        self._bury(part)
        return part

    def _bury(self, part: Part) -> None:
        """Tombstones go first: the same record key may be written anew behind them."""
        topic, number = self.changelog
        part.records += [ProducerRecord(topic, key, None, (), number) for key in self.tombstones]
        part.tombstones = len(self.tombstones)

    def landed(self, part: Part) -> None:
        """The part is on the log."""
        for packed in part.packed:
            self.index.add(packed)
        for unit in part.units:
            self._claims.pop(unit.digest, None)
        del self.tombstones[: part.tombstones]
        if part.offset is not None:
            self._offset = part.offset
        self.committed_since_purge = True

    def expire(self, ttl_ms: int, keys_max: int) -> int:
        """Forget keys that are older than `ttl_ms` before the progress; returns how many."""
        if self.progress_ms is None:
            return 0
        before = len(self.index)
        expired = self.index.expire(self.progress_ms - ttl_ms, keys_max)
        self.tombstones += [packed.record_key for packed in expired]
        return before - len(self.index)

    def too_large(self, part: Part, index: int, finished: Sequence[Finished]) -> int | StoreError:
        """Where the part's record `index` is among the emits of `finished`, or what is wrong with the changelog."""
        found = part.unit_of(index)
        if found is not None:
            unit, emit = found
            return emit + sum(len(each.emits) for each in takewhile(lambda each: each is not unit, finished))
        return StoreError(
            f"{self.changelog} does not take a record of {len(part.records[index].value or b'')} bytes: raise "
            f"max.message.bytes of {self.changelog.topic} to 1048588 or more"
        )


def stats_of(partitions: Collection[HeldPartition]) -> StoreStats:
    """What is held of one group; no progress unless that of every partition is known."""
    oldest = [at_ms for each in partitions if (at_ms := each.index.oldest_ms) is not None]
    progress = [each.progress_ms for each in partitions if each.progress_ms is not None]
    keys, claims = sum(len(each.index) for each in partitions), sum(each.claims for each in partitions)
    told = min(progress) if partitions and len(progress) == len(partitions) else None
    return StoreStats(keys, claims, 0, min(oldest, default=None), told)
