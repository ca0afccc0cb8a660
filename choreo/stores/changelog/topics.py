"""The topics in which a service's idempotency keys live: their names, what they must be, and whether they are."""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping

from choreo.errors import ConfigurationError
from choreo.ports import TopicSpec

log = logging.getLogger("choreo.changelog")

NAME_BYTES_MAX = 249
CONFIG = (
    ("cleanup.policy", "compact"),
    ("max.message.bytes", "2097152"),  # a packed record has 330 kB at most; the rest is room for later versions
    ("min.cleanable.dirty.ratio", "0.2"),  # compacted early: what a restore reads is at most 1.25 times the keys
    ("segment.bytes", "67108864"),
    ("segment.ms", "86400000"),  # an idle partition's last segment is compacted too, a day late
)
_ILLEGAL = re.compile(r"[^a-zA-Z0-9._-]")
_PLAIN_GROUP = re.compile(r"[a-zA-Z0-9-]+")
"""No dot, which would leave open where the group ends, and no underscore, which Kafka's metrics take for a dot."""


def changelog_topic(group: str, input_topic: str, prefix: str = "") -> str:
    """The topic that holds the keys of `group` for `input_topic`, both as the broker knows them.

    `<prefix>choreo.<group>.<input topic>.keys`, and a hash behind it where that might be another pair's name too or
    would be no name that Kafka takes.
    """
    plain = f"{prefix}choreo.{group}.{input_topic}.keys"
    if _PLAIN_GROUP.fullmatch(group) and not _ILLEGAL.search(plain) and len(plain) <= NAME_BYTES_MAX:
        return plain
    exact = "\0".join((prefix, group, input_topic)).encode("utf-8", "surrogatepass")
    suffix = f".keys-{hashlib.blake2b(exact, digest_size=8).hexdigest()}"
    readable = _ILLEGAL.sub("-", f"{prefix}choreo.{group}.{input_topic}")
    return readable[: NAME_BYTES_MAX - len(suffix)] + suffix


def changelog_specs(group: str, topics: Mapping[str, TopicSpec], prefix: str = "") -> list[TopicSpec]:
    """The topics that a changelog store of `group` needs beside these input topics: as wide, compacted."""
    return [
        TopicSpec(changelog_topic(group, name, prefix), spec.partitions, spec.replication, CONFIG)
        for name, spec in topics.items()
    ]


def check_topics(group: str, inputs: Iterable[str], known: Mapping[str, TopicSpec], prefix: str = "") -> None:
    """Refuse input topics whose keys could not be kept.

    Raises:
        ConfigurationError: A changelog topic is missing, is not as wide as its input topic, or is not compacted.
    """
    for topic in sorted(set(inputs)):
        name = changelog_topic(group, topic, prefix)
        if topic not in known:
            raise ConfigurationError(f"the input topic {topic} of {group} is not there: run `choreo topics apply`")
        wanted, found = known[topic].partitions, known.get(name)
        if found is None:
            raise ConfigurationError(
                f"{name}, which is to keep {group}'s keys of {topic}, is missing: run `choreo topics apply` with "
                "`--store changelog`"
            )
        if found.partitions != wanted:
            raise ConfigurationError(
                f"{topic} has {wanted} partitions and {name}, which keeps {group}'s keys of it, has "
                f"{found.partitions}: one was widened without the other; stop the service and run "
                "`choreo topics apply`, which widens both"
            )
        config = dict(found.config)
        policies = config.get("cleanup.policy", "").split(",")
        if not config:
            log.warning("%s: its settings are unknown; its cleanup.policy must be compact, or keys get lost", name)
        elif "compact" not in policies or "delete" in policies:
            raise ConfigurationError(
                f"{name} keeps {group}'s keys of {topic} and would lose them, since its cleanup.policy is "
                f"{config.get('cleanup.policy', 'not set')!r}: set it to compact"
            )
