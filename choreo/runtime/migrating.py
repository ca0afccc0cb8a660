"""Moves the instances of a process to a version, page by page, beside the services that run.

What was moved is of the new version: a run that was killed is run again, and goes on with what is left.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from choreo.errors import ConfigurationError, StoreError
from choreo.instances import Count, Instance, Instances, Intervention, OperatedStore
from choreo.process.interpreting import Process
from choreo.process.operating import Hand, move, moved

BATCH = 50
"""Instances of one transaction: their events wait until it is committed."""
NAMED_MAX = 20
"""Of those that stay as they are, so many are named."""
TRIES_MAX = 5
"""For an instance that somebody else has."""


@dataclass(slots=True)
class Migrated:
    """What became of it; `ways`: how many went from which version and state to which.

    `left`: those that cannot be moved, with the reason, NAMED_MAX of them; `left_count`: of all.
    """

    ways: Counter[tuple[int, str, int, str]] = field(default_factory=Counter)
    left: list[tuple[str, str]] = field(default_factory=list)
    left_count: int = 0

    @property
    def count(self) -> int:
        """Those that were moved, or with a dry run would be."""
        return self.ways.total()

    def leave(self, key: str, reason: str) -> None:
        """One stays as it is."""
        self.left_count += 1
        if len(self.left) < NAMED_MAX:
            self.left.append((key, reason))


def waiting(counts: Sequence[Count], to: int) -> int:
    """How many are in flight under an older version."""
    return sum(each.number for each in counts if each.timer is None and not each.ended and each.version < to)


async def migrate(
    store: OperatedStore,
    process: Process,
    to: int,
    by: Hand | None,
    progress: Callable[[int], None] = lambda seen: None,
) -> Migrated:
    """Move all that are in flight under an older version.

    Args:
        by: None: nothing is stored, and said is what would be done.
        progress: Is told how many have been seen, now and then.

    Raises:
        ConfigurationError: This build has no such version, or no `migrate` leads to it.
        StoreError: The store failed; what was moved stays moved.
    """
    if to not in process.versions:
        raise ConfigurationError(f"{process.name} v{to} is not in this build, which knows {process.known}")
    if not process.versions[to].made.moves():
        name = process.versions[to].made.__name__
        raise ConfigurationError(f"nothing leads to {process.name} v{to}: declare @{name}.migrate(from_version=...)")
    done, after, seen = Migrated(), "", 0
    while page := await store.instances(process.name, after=after, limit=10 * BATCH):
        after = page[-1].key
        old = [each for each in page if each.version < to and not each.ended]
        for at in range(0, len(old), BATCH):
            batch = old[at : at + BATCH]
            if by is None:
                for each in batch:
                    _note(done, each, moved(process, each, to))
            else:
                await _move(store, process, batch, to, by, done)
            seen += len(batch)
            progress(seen)
    return done


async def _move(
    store: OperatedStore, process: Process, batch: Sequence[Instance], to: int, by: Hand, done: Migrated
) -> None:
    """All in one transaction; one by one, if a service has one of them."""
    try:
        results = await _moved(store, process, batch, to, by)
    except StoreError:
        results = [await _alone(store, process, each, to, by) for each in batch]
    for old, (new, reason) in zip(batch, results, strict=True):
        _note(done, old, new or reason)


async def _alone(
    store: OperatedStore, process: Process, old: Instance, to: int, by: Hand
) -> tuple[Instance | None, str]:
    for _ in range(TRIES_MAX - 1):
        try:
            return (await _moved(store, process, [old], to, by))[0]
        except StoreError:
            continue
    return (await _moved(store, process, [old], to, by))[0]


async def _moved(
    store: OperatedStore, process: Process, batch: Sequence[Instance], to: int, by: Hand
) -> list[tuple[Instance | None, str]]:
    results: list[tuple[Instance | None, str]] = []

    def change(instances: Instances) -> Sequence[Intervention]:
        results.clear()
        found: list[Intervention] = []
        for old in batch:
            new = move(instances, process, old.key, to, by)
            results.append((None, new) if isinstance(new, str) else (new.instance, ""))
            if not isinstance(new, str):
                found.append(new.done)
        return found

    await store.intervene(change)
    return results


def _note(done: Migrated, old: Instance, new: Instance | str) -> None:
    if isinstance(new, Instance):
        done.ways[old.version, old.state, new.version, new.state] += 1
    elif new:
        done.leave(old.key, new)
