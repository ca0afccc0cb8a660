"""Keys in memory: what is known, and what is forgotten."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from choreo.stores.changelog.index import KeyIndex
from choreo.stores.changelog.packing import Packed

DIGESTS = st.integers(0, 40).map(
    # Few values, and among them such that share the 60 bits the index goes by.
    lambda number: bytes([number % 5]) + bytes(6) + bytes([number % 3]) + bytes([number]) * 8
)


def packed(newest_ms: int, first_offset: int, *digests: bytes) -> Packed:
    """A record of keys, each with a fingerprint of its own."""
    return Packed(newest_ms, first_offset, b"".join(digests) + b"".join(each[-8:] for each in digests))


def digest(number: int) -> bytes:
    """A key of no special bits."""
    return number.to_bytes(4, "big") * 4


class Model(RuleBasedStateMachine):
    """The index beside plain dicts of records and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.index = KeyIndex()
        self.records: dict[bytes, Packed] = {}
        self.offset = 0

    @rule(newest_ms=st.integers(0, 9), digests=st.lists(DIGESTS, min_size=1, max_size=6, unique=True))
    def add(self, newest_ms: int, digests: list[bytes]) -> None:
        """A record of keys that are not known, as a commit writes it, and again, as a tail that is read twice."""
        known = {each for record in self.records.values() for each in _digests(record)}
        fresh = [each for each in digests if each not in known]
        if fresh:
            self.offset += 1
            record = packed(newest_ms, self.offset, *fresh)
            self.index.add(record)
            self.index.add(Packed(*record))
            self.records[record.record_key] = record

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """A tombstone."""
        if self.records:
            key = data.draw(st.sampled_from(sorted(self.records)))
            assert self.index.remove(key[8:]) == self.records.pop(key).keys

    @rule(before_ms=st.integers(0, 10), keys_max=st.integers(1, 8))
    def expire(self, before_ms: int, keys_max: int) -> None:
        """The oldest first, and only those that are old enough."""
        due = sorted(record for record in self.records.values() if record.newest_ms < before_ms)
        went = self.index.expire(before_ms, keys_max)
        assert went == due[: len(went)]
        assert sum(record.keys for record in went[:-1]) < keys_max
        if len(went) < len(due):
            assert sum(record.keys for record in went) >= keys_max
        for record in went:
            del self.records[record.record_key]

    @invariant()
    def knows_what_it_was_given(self) -> None:
        """Every key with its own fingerprint, nothing else, and the oldest time."""
        known = {each: each[-8:] for record in self.records.values() for each in _digests(record)}
        assert len(self.index) == len(known)
        for number in range(41):
            each = bytes([number % 5]) + bytes(6) + bytes([number % 3]) + bytes([number]) * 8
            assert self.index.fingerprint(each) == known.get(each)
            assert self.index.knows_any([digest(number), each]) or each not in known
        assert self.index.oldest_ms == min((record.newest_ms for record in self.records.values()), default=None)


def _digests(record: Packed) -> list[bytes]:
    return [record.body[at : at + 16] for at in range(0, 16 * record.keys, 16)]


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30)


@given(st.lists(st.binary(min_size=16, max_size=16), min_size=1, max_size=50, unique=True))
def test_keys_of_one_record_are_told_apart(digests: list[bytes]) -> None:
    """Wherever in the record's bytes they are."""
    index = KeyIndex()
    index.add(packed(0, 0, *digests))
    assert [index.fingerprint(each) for each in digests] == [each[-8:] for each in digests]
    assert index.fingerprint(b"0123456789abcdef") is None or b"0123456789abcdef" in digests


def test_bytes_across_two_digests_are_no_key() -> None:
    """The end of one and the beginning of the next, found before the digest itself."""
    one, two = b"a" * 8 + b"b" * 8, b"c" * 8 + b"d" * 8
    across = b"b" * 8 + b"c" * 8
    index = KeyIndex()
    index.add(packed(0, 0, one, two, across))
    assert index.fingerprint(across) == b"c" * 8
    lacking = KeyIndex()
    lacking.add(packed(0, 0, one, two, b"b" * 8 + b"e" * 8))
    assert lacking.fingerprint(across) is None, "told by 60 bits alone"


def test_a_key_that_is_in_two_records_is_kept_as_long_as_the_later() -> None:
    """As when it was handled once more, long after: the first record's tombstone does not take it along."""
    index = KeyIndex()
    index.add(packed(1_000, 1, digest(1), digest(2)))
    index.add(packed(9_000, 2, digest(1), digest(3)))
    assert [each.first_offset for each in index.expire(5_000, 100)] == [1]
    known = [index.fingerprint(digest(number)) is not None for number in (1, 2, 3)]
    assert known == [True, False, True]


def test_one_time_in_the_future_keeps_its_own_record_only() -> None:
    """A producer with a wrong clock does not keep everything behind it for ever."""
    index = KeyIndex()
    index.add(packed(10**15, 1, digest(1)))
    index.add(packed(1_000, 2, digest(2)))
    assert [each.first_offset for each in index.expire(10_000, 100)] == [2]
    assert (len(index), index.oldest_ms) == (1, 10**15)


def test_a_forgotten_key_may_come_again() -> None:
    """Under the same record key too, as when a group is set back."""
    index = KeyIndex()
    index.add(packed(1_000, 1, digest(1)))
    assert index.knows_any([digest(2), digest(1)])
    assert not index.knows_any([digest(2)])
    assert index.remove(digest(1)) == 1
    assert not index.knows_any([digest(1)])
    assert index.remove(digest(1)) == 0
    index.add(packed(1_000, 1, digest(1)))
    assert index.fingerprint(digest(1)) is not None
    assert len(index.expire(2_000, 100)) == 1
    assert (len(index), index.oldest_ms) == (0, None)
