"""The keys of one input partition in memory: is this one known, and with which payload.

A dict from 60 bits of the digest to the packed record that holds it. Digest and fingerprint stay in the record's
bytes, as they came off the log: an int of 60 bits takes 32 bytes, where the digest and the fingerprint as objects
of their own take 112. What shares its 60 bits with another key is told apart by the record's bytes.
"""

import heapq
import struct
from collections.abc import Iterator, Sequence

from choreo.stores.changelog.packing import DIGEST_BYTES, FINGERPRINT_BYTES, Packed

_TOP = struct.Struct(">Q8x")
_SHIFT = 4


class KeyIndex:
    """Keys by digest, forgotten by record."""

    def __init__(self) -> None:
        self._by_short: dict[int, Packed] = {}
        self._by_digest: dict[bytes, Packed] = {}  # of keys whose 60 bits another record's key had first
        self._by_age: list[Packed] = []  # a heap; those forgotten by a tombstone are passed over when they come up
        self._keys = 0

    def __len__(self) -> int:
        """Number of keys."""
        return self._keys

    @property
    def oldest_ms(self) -> int | None:
        """The earliest time at which a record's keys may go; None when there is none."""
        self._drop_dead()
        return self._by_age[0].newest_ms if self._by_age else None

    def knows_any(self, digests: Sequence[bytes]) -> bool:
        """Whether one of these keys may be known; False is certain."""
        return bool(self._by_digest) or not self._by_short.keys().isdisjoint(_shorts(b"".join(digests)))

    def fingerprint(self, digest: bytes) -> bytes | None:
        """The payload's fingerprint of a known key, else None."""
        packed = self._by_short.get(_TOP.unpack(digest)[0] >> _SHIFT)
        if packed is None and not self._by_digest:
            return None
        found = _place(packed, digest) if packed is not None else None
        if found is None:
            packed = self._by_digest.get(digest)
            found = _place(packed, digest) if packed is not None else None
        if packed is None or found is None:
            return None
        at = packed.keys * DIGEST_BYTES + found * FINGERPRINT_BYTES
        return packed.body[at : at + FINGERPRINT_BYTES]

    def add(self, packed: Packed) -> None:
        """Take in a record; one that is there already changes nothing."""
        if self._holder(packed.body[:DIGEST_BYTES]) == packed:
            return
        shorts = _shorts(packed.body[: packed.keys * DIGEST_BYTES])
        if self._by_short.keys().isdisjoint(shorts):
            self._by_short.update(dict.fromkeys(shorts, packed))
            self._keys += packed.keys
        else:
            self._add_one_by_one(packed)
        heapq.heappush(self._by_age, packed)

    def _add_one_by_one(self, packed: Packed) -> None:
        self._keys += sum(self._holder(digest) is None for _, digest in _keys(packed))
        for short, digest in _keys(packed):
            holder = self._by_short.setdefault(short, packed)
            if holder is packed:
                continue
            other = self._holder(digest)
            if other is None:
                self._by_digest[digest] = packed
            elif other.newest_ms <= packed.newest_ms:  # twice on the log: kept as long as the later one
                if other is holder:
                    self._by_short[short] = packed
                    self._rescue(holder, short)
                else:
                    self._by_digest[digest] = packed

    def _rescue(self, holder: Packed, short: int) -> None:
        """Keys of `holder` that were found by the 60 bits that now lead elsewhere, and are not there."""
        for each, digest in _keys(holder):
            if each == short and self._holder(digest) is None:
                self._by_digest[digest] = holder

    def remove(self, digest: bytes) -> int:
        """Forget the record whose first unit has this digest; returns how many keys went."""
        packed = self._holder(digest)
        return self._forget(packed) if packed is not None and packed.body.startswith(digest) else 0

    def expire(self, before_ms: int, keys_max: int) -> list[Packed]:
        """Forget records all of whose keys are older, the oldest first, until `keys_max` keys went; returns them."""
        expired: list[Packed] = []
        keys = 0
        while keys < keys_max:
            self._drop_dead()
            if not self._by_age or self._by_age[0].newest_ms >= before_ms:
                break
            packed = heapq.heappop(self._by_age)
            keys += self._forget(packed)
            expired.append(packed)
        return expired

    def _drop_dead(self) -> None:
        while self._by_age and not self._alive(self._by_age[0]):
            heapq.heappop(self._by_age)

    def _alive(self, packed: Packed) -> bool:
        return any(self._holder(digest) is packed for _, digest in _keys(packed))

    def _holder(self, digest: bytes) -> Packed | None:
        packed = self._by_short.get(_TOP.unpack(digest)[0] >> _SHIFT)
        if packed is not None and _place(packed, digest) is not None:
            return packed
        return self._by_digest.get(digest)

    def _forget(self, packed: Packed) -> int:
        forgotten = sum(self._holder(digest) is packed for _, digest in _keys(packed))
        for short, digest in _keys(packed):
            if self._by_short.get(short) is packed:
                del self._by_short[short]
            elif self._by_digest.get(digest) is packed:
                del self._by_digest[digest]
        self._keys -= forgotten
        return forgotten


def _shorts(digests: bytes) -> list[int]:
    """Of each digest the 60 bits."""
    return [short >> _SHIFT for (short,) in _TOP.iter_unpack(digests)]


def _keys(packed: Packed) -> Iterator[tuple[int, bytes]]:
    """Each key's 60 bits and digest."""
    body = packed.body
    for at in range(0, packed.keys * DIGEST_BYTES, DIGEST_BYTES):
        digest = body[at : at + DIGEST_BYTES]
        yield _TOP.unpack(digest)[0] >> _SHIFT, digest


def _place(packed: Packed, digest: bytes) -> int | None:
    """Which of the record's keys has this digest."""
    end = packed.keys * DIGEST_BYTES
    at = packed.body.find(digest, 0, end)
    while at > 0 and at % DIGEST_BYTES:  # bytes of two digests that look like a third
        at = packed.body.find(digest, at + 1, end)
    return at // DIGEST_BYTES if at >= 0 else None
