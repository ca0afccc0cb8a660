"""What a service may do on a broker, as data: what it needs, and what it lacks in words. Pure."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Resource = Literal["topic", "group", "transactional-id"]
Operation = Literal["Read", "Write", "Describe", "DescribeConfigs"]
"""Kafka's own names. Who may Read or Write may Describe too, without being told so."""


class Access(NamedTuple):
    """Operations on one resource.

    Attributes:
        name: As the broker knows it; of a `prefixed` one, how the names begin.
        why: For people, a few words.
    """

    resource: Resource
    name: str
    operations: tuple[Operation, ...]
    why: str = ""
    prefixed: bool = False


def lacking(principal: str, missing: Sequence[Access]) -> str:
    """The sentence that says who lacks what, and what to do."""
    each = [
        f"{' and '.join(access.operations)} on the {access.resource.replace('-', ' ')} "
        f"{access.name}{'*' if access.prefixed else ''}"
        for access in missing
    ]
    return (
        f"{principal} lacks {'; '.join(each)}. Grant it: `choreo topics acl MODULE:APP` prints the commands of all "
        "that a service needs"
    )
