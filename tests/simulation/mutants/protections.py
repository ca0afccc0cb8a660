"""choreo's own protections, each with what takes it out."""

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

import pytest

from choreo.core.partition import Partition
from choreo.errors import ChoreoError
from choreo.ports import CommitRequest, CommitResult, Lease
from choreo.record import TopicPartition
from choreo.runtime import emitting
from choreo.runtime.holding import Holder
from choreo.runtime.keying import Units
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.telling import Teller
from choreo.sqlite import leases
from choreo.stores.sqlite import SqliteStore, claim, commit
from choreo.testing.simulation.process import Process
from tests.simulation.mutants.mutant import Mutant


def keys_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Every event is fresh."""
    patch.setattr(claim, "_row", lambda db, id_: None)


def leases_do_not_fence(patch: pytest.MonkeyPatch) -> None:
    """A former owner of a partition commits."""
    patch.setattr(leases, "lost", lambda db, held: set())
    patch.setattr(commit, "OUR_CLAIM", '"group" = ? AND topic = ? AND "partition" = ? AND ? > 0')


def refusals_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """What the store refused is taken for committed."""
    real = SqliteStore.commit

    async def taken(self: SqliteStore, request: CommitRequest) -> CommitResult:
        result = await real(self, request)
        return CommitResult(frozenset(), result.transacted, result.outbox)

    patch.setattr(SqliteStore, "commit", taken)


def watermark_passes_what_is_unfinished(patch: pytest.MonkeyPatch) -> None:
    """The offset behind everything that was fetched is committed."""
    patch.setattr(Partition, "watermark", lambda self: self.position)


def lanes_do_not_wait(patch: pytest.MonkeyPatch) -> None:
    """Events of a key run at once."""
    real = Units.of

    def alone(self: Units, partition: TopicPartition, work: Any) -> Any:
        unit = real(self, partition, work)
        unit.lane = object()
        return unit

    patch.setattr(Units, "of", alone)


def outbox_is_not_resent(patch: pytest.MonkeyPatch) -> None:
    """What a former owner did not send stays where it is."""

    async def nothing(self: Outgoing, lease: Lease) -> set[int]:
        return set()

    patch.setattr(Outgoing, "resend", nothing)


def unknown_ends_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A commit that failed counts as one that was not done."""
    patch.setattr(Outgoing, "unsure", lambda self, units: None)


def lost_partitions_are_sent_for(patch: pytest.MonkeyPatch) -> None:
    """A former owner sends what it committed, whatever came before it."""
    real = Outgoing.send_outbox

    async def all_of_it(self: Outgoing, outbox: Any, done: Iterable[bytes], held: Any) -> None:
        await real(self, outbox, done, {})

    patch.setattr(Outgoing, "send_outbox", all_of_it)


def ids_are_not_derived(patch: pytest.MonkeyPatch) -> None:
    """Handled again, an event has emits of other ids."""
    numbers = count()
    patch.setattr(emitting, "derived_id", lambda *parts: f"made-{next(numbers)}")


def offsets_of_lost_partitions_are_committed(patch: pytest.MonkeyPatch) -> None:
    """A flush from before sets the offset back to where it stood then."""

    async def whatever(self: Teller) -> None:
        offsets, self._offsets = {id_: offset for id_, (_, offset) in self._offsets.items()}, {}
        try:
            await self._worker.consumer.commit(offsets)
        except ChoreoError:
            return

    patch.setattr(Teller, "commit_offsets", whatever)


def retries_end_with_the_next_assignment(patch: pytest.MonkeyPatch) -> None:
    """What could not be taken is given up when another partition comes."""
    real = Holder._take_in_time

    async def newest(self: Holder, partition: TopicPartition, assignment: int) -> None:
        await real(self, partition, self._assignments)

    patch.setattr(Holder, "_take_in_time", newest)


def timers_go_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    """One that was fast, and is set right, makes them wait."""
    patch.setattr(Process, "monotonic_s", Process.now_s)


def position_is_read_before_the_fence(patch: pytest.MonkeyPatch) -> None:
    """Fault 5 of the client: a former owner commits between the two."""
    from choreo.core import messages as m

    async def take(self: Holder, partitions: Sequence[TopicPartition]) -> None:
        worker, consumer, service = self._worker, self._worker.consumer, self._worker.service
        offsets = {id_: await consumer.position(id_, service.start) for id_ in partitions}
        for lease in await worker.ports.store.acquire(service.group, partitions, consumer.member):
            await worker.outgoing.resend(lease)
            self.leases[lease.partition] = lease
            worker.step(m.Assigned(lease.partition, offsets[lease.partition]))
            consumer.seek(lease.partition, offsets[lease.partition])

    patch.setattr(Holder, "_take", take)


PROTECTIONS = (
    Mutant("keys forgotten", "a key that is done is found done", "orders", "outbox", keys_are_forgotten),
    Mutant("leases do not fence", "a commit checks epoch and claim", "parcels", "embedded", leases_do_not_fence),
    Mutant(
        "refusals ignored",
        "refused results are dropped",
        "parcels",
        "outbox",
        refusals_are_ignored,
        faults={"pause": 0.05, "store_down": 0.05, "cut": 0.03},
    ),
    Mutant(
        "watermark too high",
        "offsets stop at what is unfinished",
        "parcels",
        "lease",
        watermark_passes_what_is_unfinished,
    ),
    Mutant("lanes do not wait", "events of a key run in order", "parcels", "outbox", lanes_do_not_wait),
    Mutant("outbox not resent", "a new owner sends what was left", "orders", "outbox", outbox_is_not_resent),
    Mutant(
        "unknown ends forgotten",
        "a commit that failed may have been done",
        "parcels",
        "outbox",
        unknown_ends_are_forgotten,
    ),
    Mutant(
        "sent for a lost partition",
        "a lost partition's outbox is its next owner's",
        "parcels",
        "outbox",
        lost_partitions_are_sent_for,
        members=1,
        faults={"pause": 0.06, "ack_lost": 0.06},
    ),
    Mutant("ids not derived", "ids of emits are derived", "parcels", "lease", ids_are_not_derived),
    Mutant(
        "stale offsets told",
        "offsets of lost partitions are not committed",
        "parcels",
        "outbox",
        offsets_of_lost_partitions_are_committed,
    ),
    Mutant(
        "taking given up",
        "a partition is tried until it is taken",
        "orders",
        "outbox",
        retries_end_with_the_next_assignment,
        faults={"rebalance": 0.08, "cut": 0.05, "store_down": 0.05, "pause": 0.03},
    ),
    Mutant("wall-clock timers", "timers are not set back", "parcels", "outbox", timers_go_by_the_wall_clock),
    Mutant(
        "fault 5: position before the fence",
        "InitProducerId, then the position",
        "parcels",
        "changelog",
        position_is_read_before_the_fence,
    ),
)
