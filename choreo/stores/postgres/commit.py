"""A commit as steps: what to flush to the server, which handlers to call in between. Does no I/O itself.

`plain` and `transact` are generators: they yield a list of statements, or a `Transacted` to invoke, and are sent the
rows, or the outcome. A flush that fails is rolled back by whoever drives them, and its error thrown in.
"""

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

from psycopg import errors

from choreo.errors import StoreError
from choreo.ports import CommitRequest, CommitResult, Finished, Lease, Transacted
from choreo.record import ProducerRecord, TopicPartition
from choreo.stores.postgres import parked
from choreo.stores.postgres.arrays import Bytea, Float8, Int4
from choreo.stores.postgres.parked import ParkedQueries
from choreo.stores.postgres.pool import Statement
from choreo.stores.postgres.queries import BEGIN, COMMIT, CONSTRAINTS, FORGETTABLE, LIMITS, Queries
from choreo.stores.postgres.turns import Clock, Result, Turns
from choreo.stores.postgres.values import Row, emit_columns, encoded, lease_columns

_REFUSED = errors.InvalidTextRepresentation
_CONSTRAINT = (errors.IntegrityError, errors.RaiseException)


class TransactionEnded(StoreError):
    """A handler ended the transaction its key was to commit in."""


class Ended(NamedTuple):
    """Outcome of an invocation after which there is no transaction any more; `error` says whose fault that is."""

    error: BaseException


class Undone(NamedTuple):
    """A commit whose handlers are rolled back: what to tell of them, and partitions found lost on the way.

    The units finished outside of it are still to be written, by `plain`, on a connection that stands.
    """

    results: list[Result]
    lost: frozenset[TopicPartition]

    def with_rest(self, request: CommitRequest, rest: CommitResult) -> CommitResult:
        """The whole answer, once the units finished outside are written."""
        refused = rest.refused
        results = [
            None if unit.partition in refused else result
            for unit, result in zip(request.transacted, self.results, strict=True)
        ]
        return CommitResult(refused, results, rest.outbox)


Step = list[Statement] | Transacted
Steps = Generator[Step, Any, CommitResult]
TransactSteps = Generator[Step, Any, CommitResult | Undone]


class Settings(NamedTuple):
    """What the steps of one store have in common."""

    queries: Queries
    parked: ParkedQueries
    limits: Mapping[str, Any]
    """Timeouts of the transaction, as parameters of `LIMITS`."""

    def begin(self, *, forgettable: bool = False) -> list[Statement]:
        """The beginning of a transaction on a connection in autocommit."""
        return [(BEGIN, {}), (FORGETTABLE if forgettable else LIMITS, self.limits)]

    def go_on(self) -> list[Statement]:
        """The same on one that begins by itself: what a handler does after a ROLLBACK of its own is not durable."""
        return [(LIMITS, self.limits)]


class _Writing:
    """What a flush writes of finished units: keys, emits, queues; then the check of the leases as late as can be."""

    def __init__(self, settings: Settings, leases: Sequence[Lease], units: Sequence[Finished]) -> None:
        queries, held = settings.queries, {lease.partition: lease for lease in leases}
        place = {lease.partition: at for at, lease in enumerate(leases, 1)}
        ordered = sorted(units, key=lambda unit: unit.digest)
        columns = lease_columns(leases)
        self._emits = [(unit.digest, record) for unit in units for record in unit.emits]
        changes = [(held[unit.partition], unit.parking) for unit in units if unit.parking is not None]
        self._changes = len(changes)
        self.statements: list[Statement] = parked.locks(each for _, each in changes)
        if units:
            partitions, _, digests, _, outcomes, attempts, durations_s, _ = zip(*ordered, strict=True)
            parameters = {
                "leases": Int4.of([place[partition] for partition in partitions]),
                "digests": Bytea.of(digests),
                "outcomes": encoded(outcomes),
                "attempts": Int4.of(attempts),
                "durations": Float8.of(durations_s),
                "units": len(ordered),
                **emit_columns(self._emits),
            }
            self.statements.append((queries.finish, columns | parameters))
        self.statements += [parked.change(settings.parked, lease, each) for lease, each in changes]
        self.statements.append((queries.fence, columns))
        self.statements.append((COMMIT, {}))

    def outbox(self, rows: Sequence[Sequence[Row]]) -> list[tuple[int, ProducerRecord]]:
        """The emits with their row ids; `rows` is what the flush that ended with the statements returned."""
        if not (self._emits or self._changes):
            return []
        changed = len(rows) - 2 - self._changes
        ids: list[int] = rows[changed - 1][0][0]
        found = [(id_, record) for id_, (_, record) in zip(sorted(ids), self._emits, strict=True)]
        return found + [emit for some in rows[changed : len(rows) - 2] for emit in parked.emitted(some)]


class _Found(NamedTuple):
    """What there is of a request: partitions that are lost, and digest -> done of the claims that are ours."""

    lost: set[TopicPartition]
    claims: dict[bytes, bool]


def _pairs(*units: Sequence[Finished] | Sequence[Transacted]) -> list[tuple[TopicPartition, bytes]]:
    return [(unit.partition, unit.digest) for some in units for unit in some]


def _looking(
    settings: Settings, request: CommitRequest, units: Sequence[tuple[TopicPartition, bytes]]
) -> list[Statement]:
    leases = list(request.leases.values())
    place = {lease.partition: at for at, lease in enumerate(leases, 1)}
    columns = lease_columns(leases)
    claims = {
        "leases": Int4.of([place[at] for at, _ in units]),
        "digests": Bytea.of([digest for _, digest in units]),
    }
    return [(settings.queries.lost, columns), (settings.queries.states, columns | claims)]


def _found(request: CommitRequest, rows: Sequence[Sequence[Row]]) -> _Found:
    """What `_looking` returned."""
    leases = list(request.leases)
    return _Found({leases[row[0] - 1] for row in rows[0]}, {bytes(digest): done for digest, done in rows[1]})


def plain(settings: Settings, request: CommitRequest, refused: frozenset[TopicPartition] = frozenset()) -> Steps:
    """A commit without handlers inside: one flush, unless something in it is not ours or was written before."""
    units = list({unit.digest: unit for unit in reversed(request.finished)}.values())[::-1]
    lost, written = set(refused), set[bytes]()
    for _ in range(len(request.leases) + 2):
        leases = [lease for id_, lease in request.leases.items() if id_ not in lost]
        if not leases:
            return CommitResult(frozenset(lost))
        writing = _Writing(
            settings,
            leases,
            [unit for unit in units if unit.partition not in lost and unit.digest not in written],
        )
        try:
            rows = yield [*settings.begin(), *writing.statements]
        except _REFUSED:
            rows = yield [*settings.begin(), *_looking(settings, request, _pairs(units)), (COMMIT, {})]
            found = _found(request, rows[2:4])
            lost |= found.lost | {unit.partition for unit in units if unit.digest not in found.claims}
            written = {digest for digest, done in found.claims.items() if done}
        else:
            return CommitResult(frozenset(lost), (), writing.outbox(rows))
    raise StoreError("leases and claims of a commit changed hands again and again; it is tried again")


def transact(settings: Settings, request: CommitRequest, *, clock: Clock = time.monotonic) -> TransactSteps:
    """A commit with handlers inside, all of one kind: that of the first. Those of another kind are handed back."""
    outcome = yield from _transaction(settings, request, invocations_max=None, clock=clock)
    if outcome is None:  # a deferred constraint of one of them failed: alone it is known which
        outcome = yield from _transaction(settings, request, invocations_max=1, clock=clock)
    assert outcome is not None
    return outcome


def _transaction(
    settings: Settings, request: CommitRequest, *, invocations_max: int | None, clock: Clock
) -> Generator[Step, Any, CommitResult | Undone | None]:
    queries = settings.queries
    pairs = _pairs(request.finished, request.transacted)
    rows = yield [*settings.go_on(), *_looking(settings, request, pairs), (queries.guard, {})]
    found = _found(request, rows[1:3])
    found.lost.update(unit.partition for unit in request.finished if unit.digest not in found.claims)
    turns = Turns(request.transacted, found.lost, found.claims, invocations_max, clock)
    for at, unit in enumerate(request.transacted):
        if not turns.invokes(at, unit):
            continue
        outcome = yield unit
        if isinstance(outcome, Ended):
            return Undone(turns.undone({at: outcome.error}), frozenset())
        turns.note(at, unit, outcome)
    finished = [
        unit for unit in request.finished if unit.partition not in found.lost and not found.claims[unit.digest]
    ] + list(turns.invoked.values())
    leases = [lease for id_, lease in request.leases.items() if id_ not in found.lost]
    writing = _Writing(settings, leases, finished)
    ending = [(queries.unguard, {"guard": rows[3][0][0]}), (CONSTRAINTS, {})]
    try:
        rows = yield [*ending, *writing.statements]
    except _CONSTRAINT as error:
        return _charged(turns, error)
    except _REFUSED:
        return (yield from _refused(settings, request, turns))
    return CommitResult(frozenset(found.lost), turns.results, writing.outbox(rows))


def _charged(turns: Turns, error: BaseException) -> Undone | None:
    """A deferred constraint failed: the fault of the only one invoked, or nobody's that is known."""
    if len(turns.places) > 1:
        return None
    return Undone(turns.undone(dict.fromkeys(turns.places, error)), frozenset())


def _refused(
    settings: Settings, request: CommitRequest, turns: Turns
) -> Generator[Step, Any, CommitResult | Undone | None]:
    """A lease or a claim went while handlers ran: nothing of theirs is there; tell whose partition it was."""
    invoked = [request.transacted[at] for at in turns.places]
    pairs = _pairs(request.finished, invoked)
    rows = yield [*settings.go_on(), *_looking(settings, request, pairs), (COMMIT, {})]
    found = _found(request, rows[1:3])
    lost = found.lost | {partition for partition, digest in pairs if digest not in found.claims}
    blamed: dict[int, BaseException] = {}
    if not lost and not any(found.claims.get(unit.digest) for unit in invoked):
        error = TransactionEnded("one of the handlers of this commit ended its transaction; none is kept")
        blamed = dict.fromkeys(turns.places, error)
    return Undone(turns.undone(blamed), frozenset(lost))
