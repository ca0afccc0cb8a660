"""Names and settings of changelog topics."""

import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.errors import ConfigurationError
from choreo.ports import TopicSpec
from choreo.stores.changelog.topics import changelog_specs, changelog_topic, check_topics

TOPICS = st.from_regex(r"[a-z._-]{1,20}", fullmatch=True)
GROUPS = st.one_of(st.from_regex(r"[a-z._-]{1,12}", fullmatch=True), st.text(min_size=1, max_size=12))
PREFIXES = st.sampled_from(["", "p.", "p_"])


def test_a_plain_pair_has_a_plain_name() -> None:
    """Which a person can read and type."""
    assert changelog_topic("inventory", "orders") == "choreo.inventory.orders.keys"
    assert changelog_topic("inventory", "eu.orders", "eu.") == "eu.choreo.inventory.eu.orders.keys"


@given(st.lists(st.tuples(PREFIXES, GROUPS, TOPICS), min_size=2, max_size=20, unique=True))
def test_two_pairs_never_share_a_name(pairs: list[tuple[str, str, str]]) -> None:
    """Nor names that Kafka refuses beside each other, where `.` and `_` are one; their inputs do not exist then."""
    inputs = {(prefix, group, topic.replace("_", ".")) for prefix, group, topic in pairs}
    names = {changelog_topic(group, topic, prefix).replace("_", ".") for prefix, group, topic in inputs}
    prefixes = {prefix.replace("_", ".") for prefix, _, _ in inputs}
    assert len(names) == len(inputs) or len(prefixes) < len({prefix for prefix, _, _ in inputs})


@given(st.text(max_size=300), st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True))
def test_names_are_such_as_kafka_takes(group: str, topic: str) -> None:
    """Whatever a group is called."""
    assert re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", changelog_topic(group, topic, "prefix."))


def test_groups_and_topics_with_dots_are_told_apart() -> None:
    """Where one ends and the other begins."""
    assert changelog_topic("a", "b.c") != changelog_topic("a.b", "c")
    assert changelog_topic("a_b", "c").replace("_", ".") != changelog_topic("a", "b.c").replace("_", ".")


def test_long_names_are_told_apart_by_their_ends() -> None:
    """What is cut off is in the hash."""
    assert changelog_topic("g", "t" * 248 + "a") != changelog_topic("g", "t" * 248 + "b")


def test_specs_are_as_wide_as_the_inputs_and_compacted() -> None:
    """One an input topic, replicated as it is."""
    specs = changelog_specs("g", {"a": TopicSpec("a", 12, 3), "b": TopicSpec("b", 1)}, "p.")
    assert [spec[:3] for spec in specs] == [("p.choreo.g.a.keys", 12, 3), ("p.choreo.g.b.keys", 1, 1)]
    assert all(dict(spec.config)["cleanup.policy"] == "compact" for spec in specs)


def known(*specs: TopicSpec) -> dict[str, TopicSpec]:
    """As a transport tells them."""
    return {spec.name: spec for spec in specs}


INPUT = TopicSpec("orders", 4)
KEPT = changelog_specs("g", {"orders": INPUT})[0]


def test_topics_as_they_should_be_are_taken() -> None:
    """Other policies beside `compact` are not needed."""
    check_topics("g", ["orders"], known(INPUT, KEPT))


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        ([INPUT], r"choreo\.g\.orders\.keys.* is missing: run `choreo topics apply`"),
        ([KEPT], "the input topic orders of g is not there"),
        ([INPUT._replace(partitions=8), KEPT], "orders has 8 partitions .* has 4: .*which widens both"),
        ([INPUT, KEPT._replace(partitions=8)], "orders has 4 partitions .* has 8: .*which widens both"),
        ([INPUT, KEPT._replace(config=(("cleanup.policy", "delete"),))], "'delete': set it to compact"),
        ([INPUT, KEPT._replace(config=(("cleanup.policy", "compact,delete"),))], "set it to compact"),
        ([INPUT, KEPT._replace(config=(("segment.ms", "1"),))], "'not set': set it to compact"),
    ],
)
def test_topics_that_would_lose_keys_are_refused(specs: list[TopicSpec], says: str) -> None:
    """With what to do about it."""
    with pytest.raises(ConfigurationError, match=says):
        check_topics("g", ["orders"], known(*specs))


def test_unknown_settings_are_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    """They may not be granted to be read; the service starts."""
    with caplog.at_level(logging.WARNING):
        check_topics("g", ["orders"], known(INPUT, KEPT._replace(config=())))
    assert "cleanup.policy must be compact" in caplog.text
