"""Keys as records of a changelog topic, and back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.errors import ConfigurationError, StoreError
from choreo.record import Record
from choreo.stores.changelog import packing as changelog_packing
from choreo.stores.changelog.packing import VERSION, Key, first_digest, pack, unpack

TIMES = st.one_of(st.integers(0, 300), st.integers(0, 2**40), st.integers(-(2**63), 2**63 - 1))
KEYS = st.builds(
    Key,
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=8, max_size=8),
    st.integers(0, 2**63 - 1),
    TIMES,
    st.sampled_from(["handled", "dead_letter:rejected", "something new"]),
)


def record(key: bytes | None, value: bytes | None) -> Record:
    """As it comes off the log."""
    return Record("choreo.g.t.keys", 3, 41, key, value, (), 0)


def one(keys: list[Key]) -> Record:
    """The one record of some keys."""
    ((packed, value),) = pack(keys)
    return record(packed.record_key, value)


KEY = Key(b"d" * 16, b"f" * 8, 7, 1_000, "handled")


@given(st.lists(KEYS, min_size=1, max_size=30))
def test_what_is_packed_comes_back(keys: list[Key]) -> None:
    """Digests and fingerprints in order, the lowest offset and the latest time, as memory kept it at once."""
    ((packed, value),) = pack(keys)
    back = unpack(record(packed.record_key, value))
    assert back == packed
    assert back.body == b"".join(key.digest for key in keys) + b"".join(key.fingerprint for key in keys)
    assert (back.first_offset, back.newest_ms) == (
        min(key.offset for key in keys),
        max(key.timestamp_ms for key in keys),
    )
    assert back.keys == len(keys)


@given(st.lists(KEYS, min_size=1, max_size=30))
def test_each_time_and_outcome_is_on_the_log(keys: list[Key]) -> None:
    """For whoever reads the topic: outcomes as a byte each, times as their distance from the base."""
    value = one(keys).value or b""
    version, width, count, base_ms = struct.unpack_from(">BBIq", value)
    at = 14 + 24 * count
    assert (version, count, len(value)) == (VERSION, len(keys), at + count + width * count)
    assert [value[at + n] for n in range(count)] == [
        {"handled": 0, "dead_letter": 1}.get(key.outcome.partition(":")[0], 255) for key in keys
    ]
    times = [int.from_bytes(value[at + count + n * width :][:width], "big") for n in range(count)]
    assert [base_ms + time for time in times] == [key.timestamp_ms for key in keys]


def test_a_key_of_one_burst_takes_27_bytes() -> None:
    """Digest, fingerprint, outcome and two bytes of time; the header is shared."""
    keys = [KEY._replace(digest=b"%16d" % n, timestamp_ms=1_700_000_000_000 + 9 * n) for n in range(1_000)]
    assert len(one(keys).value or b"") == 14 + 27 * 1_000


def test_many_keys_take_several_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them more than the limit, all of them there, each with a record key of its own."""
    monkeypatch.setattr(changelog_packing, "KEYS_MAX", 4)
    keys = [KEY._replace(digest=b"%16d" % n) for n in range(10)]
    packed = [each for each, _ in pack(keys)]
    assert [each.keys for each in packed] == [4, 4, 2]
    assert b"".join(each.body[: 16 * each.keys] for each in packed) == b"".join(key.digest for key in keys)
    assert len({each.record_key for each in packed}) == 3


def test_the_largest_record_fits_the_default_of_brokers() -> None:
    """1,048,588 bytes, whatever the times are."""
    keys = [KEY._replace(timestamp_ms=(-1) ** n * 2**62) for n in range(changelog_packing.KEYS_MAX)]
    assert len(one(keys).value or b"") < 500_000


def test_two_flushes_with_the_same_first_offset_have_two_record_keys() -> None:
    """Two handlers of one record: compaction keeps one record a key."""
    first, second = one([KEY]), one([KEY._replace(digest=b"e" * 16)])
    assert first.key != second.key
    assert (first.key or b"")[:8] == (second.key or b"")[:8]


def test_a_record_of_a_newer_version_names_the_upgrade() -> None:
    """And not what is in it."""
    newer = record(one([KEY]).key, bytes([VERSION + 1]) + b"whatever")
    with pytest.raises(ConfigurationError, match=r"choreo\.g\.t\.keys/3@41 .*upgrade choreo"):
        unpack(newer)


@given(st.lists(KEYS, min_size=1, max_size=5), st.data())
def test_a_record_that_was_cut_or_grew_is_refused(keys: list[Key], data: st.DataObject) -> None:
    """Whatever is missing, and whatever is too much."""
    whole = one(keys)
    value = whole.value or b""
    cut = data.draw(st.integers(0, len(value) - 1))
    for wrong in (value[:cut], value + b"x"):
        with pytest.raises(StoreError, match=r"choreo\.g\.t\.keys/3@41"):
            unpack(record(whole.key, wrong))


@given(st.binary(max_size=60), st.binary(max_size=200))
def test_foreign_records_are_refused_and_crash_nothing(key: bytes, value: bytes) -> None:
    """Somebody else wrote to the topic: an error of ours, never another one."""
    with pytest.raises((StoreError, ConfigurationError)):
        unpack(record(key, value))


@pytest.mark.parametrize("key", [None, b"", b"x" * 23, b"x" * 25])
def test_a_tombstone_of_a_foreign_key_is_refused(key: bytes | None) -> None:
    """It cannot be said what it forgets."""
    with pytest.raises(StoreError, match=r"choreo\.g\.t\.keys/3@41"):
        first_digest(record(key, None))


def test_a_record_under_another_key_than_its_own_is_refused() -> None:
    """Its tombstone would not find it."""
    with pytest.raises(StoreError, match="another first unit"):
        unpack(record(bytes(8) + b"e" * 16, one([KEY]).value))
