"""Commits of `ChangelogStore`: one transaction a partition, and what is learnt of those whose end is not known."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack

from choreo.errors import ChoreoError, LeaseLost, RecordTooLarge, StoreError
from choreo.ports import CommitRequest, CommitResult, Finished
from choreo.record import TopicPartition
from choreo.stores.changelog.holdings import Holdings
from choreo.stores.changelog.partition import HeldPartition, Part

log = logging.getLogger("choreo.changelog")


async def commit(holdings: Holdings, request: CommitRequest) -> CommitResult:
    """As the port says, of a request without handlers inside.

    Raises:
        RecordTooLarge: Of its partition nothing was written; `index` counts the emits of `request.finished`.
        ChoreoError: Of some partition it is not known whether it was written; the rest was. The same request
            again finds out first.
    """
    units = units_by_partition(request.finished)
    wanted = request.offsets.keys() | units.keys()
    ours = {id_: held for id_ in sorted(wanted) if (held := holdings.of(request.leases[id_])) is not None}
    refused = wanted - ours.keys()
    async with AsyncExitStack() as stack:
        for held in ours.values():
            await stack.enter_async_context(held.lock)
        failed = await _resolve(holdings, [held for held in ours.values() if holdings.has(held)])
        parts: dict[HeldPartition, Part] = {}
        for id_, held in ours.items():
            ours_still = holdings.has(held)  # neither released nor taken anew while we waited
            if ours_still and held.in_doubt:
                continue
            part = held.part(units.get(id_, ()), request.offsets.get(id_)) if ours_still else None
            if part is None:
                await holdings.lose(held)
                refused.add(id_)
            elif part.records or part.offset is not None:
                parts[held] = part
        lost, errors = await _write(holdings, parts, request.finished)
    if failed or errors:
        raise first_failure(failed + errors)
    return CommitResult(frozenset(refused | lost), (), [])


async def bury(holdings: Holdings, held: HeldPartition) -> None:
    """Write a partition's tombstones, in a transaction of their own."""
    async with held.lock:
        if not holdings.has(held):
            return
        failed = await _resolve(holdings, [held])
        if not failed:
            failed = (await _write(holdings, {held: held.burial()}))[1]
        for error in failed:
            log.warning("%s: %d tombstones are still to be written: %s", held.changelog, len(held.tombstones), error)


async def _resolve(holdings: Holdings, partitions: Iterable[HeldPartition]) -> list[Exception]:
    """Learn what became of commits in doubt; returns why it is not known yet of some."""
    doubtful = [each for each in partitions if each.in_doubt]
    answers = await asyncio.gather(
        *(each.resolve(holdings.transactions) for each in doubtful), return_exceptions=True
    )
    for answer in answers:
        if answer is not None and not isinstance(answer, ChoreoError):
            raise answer
    released = [each.lease.partition for each in doubtful if holdings.of(each.lease) is None]
    await holdings.transactions.give_up(released)  # while they were fenced once more
    return [answer for answer in answers if isinstance(answer, ChoreoError)]


async def _write(
    holdings: Holdings, parts: Mapping[HeldPartition, Part], finished: Sequence[Finished] = ()
) -> tuple[set[TopicPartition], list[Exception]]:
    """Commit each part, of these units; returns the partitions that are lost, and what else went wrong."""
    if not parts:
        return set(), []
    for held in parts:
        held.in_doubt = True  # until the log says otherwise, should we be cancelled
    answers = await holdings.transactions.commit(
        {held.lease.partition: part.log_commit() for held, part in parts.items()}
    )
    lost: set[TopicPartition] = set()
    errors: list[Exception] = []
    for held, part in parts.items():
        error = answers[held.lease.partition]
        if error is None:
            held.in_doubt = False
            held.landed(part)
        elif isinstance(error, LeaseLost):
            await holdings.lose(held)
            lost.add(held.lease.partition)
        elif isinstance(error, RecordTooLarge):
            place = held.too_large(part, error.index, finished)
            errors.append(place if isinstance(place, StoreError) else RecordTooLarge(str(error), index=place))
        else:
            errors.append(error)
    return lost, errors


def units_by_partition(finished: Iterable[Finished]) -> dict[TopicPartition, list[Finished]]:
    """The units of each partition."""
    units: dict[TopicPartition, list[Finished]] = {}
    for unit in finished:
        units.setdefault(unit.partition, []).append(unit)
    return units


def first_failure(errors: Sequence[Exception]) -> Exception:
    """The one to raise: what a caller can act on before what it can only repeat; the others are logged."""
    chosen = next((each for each in errors if isinstance(each, RecordTooLarge)), errors[0])
    for error in errors:
        if error is not chosen:
            log.warning("a part of the commit failed: %s", error)
    return chosen if isinstance(chosen, ChoreoError) else StoreError(f"{type(chosen).__name__}: {chosen}")
