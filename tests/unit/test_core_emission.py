"""Computed identities: equal for what is equal, different for all else, for ever the same."""

from uuid import RFC_4122, UUID, uuid4

from hypothesis import given
from hypothesis import strategies as st

from choreo.core.emission import business_digest, derived_id, fingerprint, is_derived, key_digest

_PARTS = st.tuples(st.text(), st.text(), st.text(), st.text())


def test_identities_stay_as_they_are() -> None:
    """Keys are stored and ids are sent: another value after an upgrade would handle everything twice."""
    assert key_digest("inventory", "reserve", "/shop", "1").hex() == "fd2b9ec704dffa9aea08b9ff63b26bf1"
    assert business_digest("inventory", "reserve", "1").hex() == "8e7ae3c024eb75405c6b9856e5e7abf2"
    assert fingerprint(b"{}").hex() == "01e7b720ff566d53"
    assert (
        derived_id("inventory", "reserve", "/shop", "1", "stock.reserved", 0)
        == "b89313c2-f8f4-844b-9555-508521856b9b"
    )


@given(_PARTS, _PARTS)
def test_keys_are_equal_only_for_equal_parts(
    one: tuple[str, str, str, str], other: tuple[str, str, str, str]
) -> None:
    """Service, handler, source and id each make another key."""
    assert (key_digest(*one) == key_digest(*other)) == (one == other)
    assert len(key_digest(*one)) == 16


def test_moving_a_letter_between_parts_makes_another_key() -> None:
    """Parts are length-prefixed, so that no two events share a key by concatenation."""
    keys = {key_digest("a", "b", "cd", "e"), key_digest("a", "bc", "d", "e"), key_digest("a", "b", "c", "de")}
    assert len(keys) == 3


def test_the_kinds_of_identity_never_meet() -> None:
    """A business key is no event key, even of the same parts."""
    assert business_digest("s", "h", "x") != key_digest("s", "h", "x", "")
    assert len(business_digest("s", "h", "x")) == 16
    assert len(fingerprint(b"")) == 8


def test_parts_may_hold_whatever_python_text_may() -> None:
    """A lone surrogate or a zero byte in an id is hashed and not an error."""
    assert key_digest("s", "h", "/x", "\ud800") != key_digest("s", "h", "/x", "\x00")


@given(_PARTS, st.text(), st.integers(0, 1_000_000))
def test_a_derived_id_is_a_version_8_uuid(parts: tuple[str, str, str, str], type_: str, ordinal: int) -> None:
    """RFC 9562: version and variant are where every reader looks for them."""
    text = derived_id(*parts, type_, ordinal)
    assert UUID(text).version == 8
    assert UUID(text).variant == RFC_4122
    assert str(UUID(text)) == text
    assert text == derived_id(*parts, type_, ordinal)
    assert is_derived(text, "cause")


def test_each_emit_of_a_handler_has_an_id_of_its_own() -> None:
    """Type and ordinal are part of it."""
    ids = {derived_id("s", "h", "/x", "1", type_, ordinal) for type_ in ("a", "b") for ordinal in range(50)}
    assert len(ids) == 100


def test_a_foreign_id_is_not_derived() -> None:
    """Without a cause, or as a UUID of another version, an id is its producer's own."""
    ours = derived_id("s", "h", "/x", "1", "a", 0)
    assert not is_derived(ours, None)
    assert not is_derived(str(uuid4()), "cause")
    assert not is_derived("order-8", "cause")
    assert not is_derived("", "cause")
