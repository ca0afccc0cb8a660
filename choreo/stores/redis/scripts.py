"""The store's Lua, each of its scripts one atomic step; they lie beside this module as `<name>.lua`.

Every key a script touches is named in its KEYS and carries the group's hash tag, so that it runs on a cluster too.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple, TypeVar

from choreo.ports import Lease
from choreo.record import TopicPartition

UNITS_MAX = 1_000
"""Units, leases or digests of one script: the server does nothing else while one runs."""
_Item = TypeVar("_Item")


class Script(NamedTuple):
    """A script and the digest the server caches it by. `repeatable`: running it twice does what once would."""

    name: str
    text: str
    sha: str
    repeatable: bool = True


def _read(name: str) -> str:
    return files("choreo.stores.redis").joinpath(f"{name}.lua").read_text("utf-8")


def _script(name: str) -> Script:
    text = _read("lease") + _read(name)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


ACQUIRE = _script("acquire")
RENEW = _script("renew")
CLAIM = _script("claim")
CLAIM_SOLO = CLAIM._replace(repeatable=False)
"""The same text, but each run counts a delivery."""
COMMIT = _script("commit")
RELEASE = _script("release")
PURGE = _script("purge")
STATS = _script("stats")


def slices(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """What scripts are given of many items, one after the other: at most UNITS_MAX each."""
    for start in range(0, len(items), UNITS_MAX):
        yield items[start : start + UNITS_MAX]


def filled(leases: Sequence[Lease], digests: Mapping[TopicPartition, Sequence[bytes]]) -> Iterator[list[Lease]]:
    """Leases in runs of at most UNITS_MAX units together; one that has more is a run of its own."""
    run: list[Lease] = []
    units = 0
    for lease in leases:
        count = len(digests[lease.partition]) + 1
        if run and units + count > UNITS_MAX:
            yield run
            run, units = [], 0
        run.append(lease)
        units += count
    if run:
        yield run
