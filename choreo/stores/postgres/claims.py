"""Claims: a slice of requests as statements, the answers out of their rows, and which claims are in flight."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from choreo.ports import Claimed, ClaimRequest, CommitRequest, CommitResult, Finished, Lease
from choreo.record import TopicPartition
from choreo.stores.postgres.arrays import Bytea, Int4
from choreo.stores.postgres.parked import ParkedQueries
from choreo.stores.postgres.pool import Statement
from choreo.stores.postgres.queries import Queries
from choreo.stores.postgres.values import Row, claim_columns, lease_columns

_FRESH = Claimed("fresh")


class Slice(NamedTuple):
    """Requests of distinct digests, each with its number, and those that ask the same as one of them."""

    firsts: list[tuple[int, ClaimRequest]]
    same: list[tuple[int, int]]
    """Number of a request, number of the first one of its digest and partition."""


def slices(requests: Sequence[ClaimRequest]) -> list[Slice]:
    """No statement may meet a digest twice: one slice, but for keys that several partitions ask for."""
    if len({request.digest for request in requests}) == len(requests):
        return [Slice(list(enumerate(requests)), [])] if requests else []
    made: list[tuple[Slice, dict[bytes, tuple[TopicPartition, int]]]] = []
    for number, request in enumerate(requests):
        for slice_, seen in made:
            first = seen.get(request.digest)
            if first is None:
                slice_.firsts.append((number, request))
                seen[request.digest] = request.partition, number
                break
            if first[0] == request.partition:
                slice_.same.append((number, first[1]))
                break
        else:
            made.append((Slice([(number, request)], []), {request.digest: (request.partition, number)}))
    return [slice_ for slice_, _ in made]


def inserting(
    queries: Queries,
    parked: ParkedQueries,
    leases: Sequence[Lease],
    requests: Sequence[ClaimRequest],
    made: Sequence[Slice],
) -> list[Statement]:
    """What is new, a slice; then, if they were asked for, queues."""
    wanted: list[Statement] = [(queries.insert, claim_columns(leases, slice_.firsts)) for slice_ in made]
    queues = sorted({each.queue for each in requests if each.queue is not None})
    return [*wanted, (parked.of, {"queues": queues})] if queues else wanted


def taking(
    queries: Queries, leases: Sequence[Lease], made: Sequence[Slice], inserted: Sequence[Sequence[Row]]
) -> list[Statement]:
    """Where not all was new: which leases are lost; then, a slice, what was there."""
    if made and all(_new(rows) is None for rows in inserted[: len(made)]):
        return []
    wanted: list[Statement] = [(queries.lost, lease_columns(leases))]
    for slice_, rows in zip(made, inserted, strict=False):  # behind them are queues
        new = _new(rows)
        left = [] if new is None else [each for each in slice_.firsts if each[1].digest not in new]
        wanted.append((queries.take, claim_columns(leases, left)))
    return wanted


def answers(
    requests: Sequence[ClaimRequest],
    made: Sequence[Slice],
    inserted: Sequence[Sequence[Row]],
    found: Sequence[Sequence[Row]],
) -> list[Claimed]:
    """The answers in order of the requests.

    Args:
        inserted: What `inserting` returned.
        found: What `taking` returned of each slice; nothing if it was not asked.
    """
    told: list[tuple[Claimed, bytes | None]] = [(_FRESH, None)] * len(requests)
    for at, slice_ in enumerate(made):
        new = _new(inserted[at])
        if new is not None:  # what was neither inserted nor found was somebody's a moment ago, who then gave it up
            for number, request in slice_.firsts:
                if request.digest not in new:
                    told[number] = Claimed("busy"), None
        for number, verdict, deliveries, fingerprint in found[at] if found else ():
            fresh = verdict == "fresh"
            told[number] = Claimed(verdict, deliveries if fresh else 1), fingerprint
        for number, first in slice_.same:
            claimed, fingerprint = told[first]
            if claimed.verdict in ("done", "conflict") and fingerprint is not None:
                same = bytes(fingerprint) == requests[number].fingerprint
                claimed = Claimed("done" if same else "conflict")
            told[number] = claimed, fingerprint
    parked = {bytes(queue) for rows in inserted[len(made) :] for (queue,) in rows}
    verdicts = [claimed for claimed, _ in told]
    if not parked:
        return verdicts
    return [each._replace(parked=request.queue in parked) for request, each in zip(requests, verdicts, strict=True)]


def _new(rows: Sequence[Row]) -> frozenset[bytes] | None:
    """Digests that an insert found new; None if all were."""
    ((digests,),) = rows
    return None if digests is None else frozenset(digests)


class InFlight:
    """Which claims this process has, so that `release` finds them by key.

    An index of unfinished keys would have to be changed by every commit: see postgres/schema.sql on HOT updates.
    """

    def __init__(self) -> None:
        self._claims: dict[Lease, set[bytes]] = {}

    def asked(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest]) -> None:
        """These may be ours soon, and stay so if the answer is lost."""
        for lease, digests in _by_lease(leases, requests).items():
            self._claims.setdefault(lease, set()).update(digests)

    def answered(self, leases: Sequence[Lease], requests: Sequence[ClaimRequest], told: Sequence[Claimed]) -> None:
        """Those that were not fresh are not ours."""
        others = [request for request, claimed in zip(requests, told, strict=True) if claimed.verdict != "fresh"]
        self._drop(_by_lease(leases, others))

    def committed(self, request: CommitRequest, result: CommitResult) -> None:
        """These are done."""
        units = [unit for unit in (*request.finished, *result.transacted) if isinstance(unit, Finished)]
        kept = [unit for unit in units if unit.partition not in result.refused]
        self._drop(_by_lease(request.leases.values(), kept))

    def of(self, leases: Sequence[Lease]) -> dict[str, Any]:
        """Claims of the leases, as columns."""
        pairs = [(at, digest) for at, lease in enumerate(leases, 1) for digest in self._claims.get(lease, ())]
        pairs.sort(key=lambda pair: pair[1])
        return {"leases": Int4.of([at for at, _ in pairs]), "digests": Bytea.of([digest for _, digest in pairs])}

    def forget(self, leases: Iterable[Lease]) -> None:
        """The leases are given up, or lost."""
        for lease in leases:
            self._claims.pop(lease, None)

    def _drop(self, digests: Mapping[Lease, set[bytes]]) -> None:
        for lease, gone in digests.items():
            if lease in self._claims:
                self._claims[lease] -= gone


def _by_lease(leases: Iterable[Lease], units: Sequence[ClaimRequest | Finished]) -> dict[Lease, set[bytes]]:
    by_partition: defaultdict[TopicPartition, set[bytes]] = defaultdict(set)
    for unit in units:
        by_partition[unit.partition].add(unit.digest)
    return {lease: by_partition[lease.partition] for lease in leases if lease.partition in by_partition}
