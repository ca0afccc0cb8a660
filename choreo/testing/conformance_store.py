"""What every `IdempotencyStore` must do, as tests that its author inherits."""

import asyncio
import os
from collections.abc import Awaitable
from uuid import uuid4

from choreo.errors import LeaseLost
from choreo.ports import Claimed, ClaimRequest, CommitRequest, Finished, Lease
from choreo.record import ProducerRecord
from choreo.testing.conformance_shelf import CARRIES, OnShelf, Shelf
from choreo.testing.conformance_stage import Stage, needs

FRESH, AGAIN = Claimed("fresh"), Claimed("fresh", 2)


class StoreConformance(OnShelf):
    """Inherit it in a class `Test...`, declare what it carries as `guarantees`, write `store`, perhaps `log`."""

    async def test_it_carries_what_it_declares(self) -> None:
        """A worker relies on the store's own word."""
        async with self.shelf() as shelf:
            assert shelf.store.carries == self.guarantees & CARRIES
            assert bool(shelf.store.transaction_types) == ("rows" in self.guarantees)
            assert bool(shelf.store.transactions_max) == ("rows" in self.guarantees)
            assert (shelf.store.dedupe_scope == "anywhere") == ("anywhere" in self.guarantees)
            assert await shelf.store.plan() == []

    async def test_a_handled_event_is_done_and_another_payload_of_its_key_a_conflict(self) -> None:
        """Before the commit it is the claimant's own, after it nobody's, in order of the requests."""
        async with self.shelf() as shelf:
            lease, keys = await shelf.lease(shelf.p), [os.urandom(16) for _ in range(3)]
            assert [await shelf.claim(lease, key) for key in keys] == [FRESH] * 3
            assert await shelf.claim(lease, keys[0]) == FRESH, "our own claim again"
            assert not (await shelf.store.commit(shelf.request((lease, keys[0], 0)))).refused
            newer = await shelf.lease(shelf.p, "two")
            requests = [
                ClaimRequest(shelf.p, key, print_, "service.handler", 7, "flow", 0)
                for key, print_ in ((keys[1], b"12345678"), (keys[0], b"12345678"), (keys[0], b"another!"))
            ]
            assert [each.verdict for each in await shelf.store.claim([newer], requests)] == [
                "fresh",
                "done",
                "conflict",
            ]

    async def test_a_newer_epoch_fences_the_older(self) -> None:
        """Claims and renewals fail, a commit is refused and writes nothing; another partition's part is written."""
        async with self.shelf() as shelf:
            old, other = await shelf.lease(shelf.p), await shelf.lease(shelf.q)
            key, free = os.urandom(16), os.urandom(16)
            await shelf.claim(old, key)
            await shelf.claim(other, free)
            new = await shelf.lease(shelf.p, "two")
            assert new.epoch > old.epoch
            await self._lost(shelf.claim(old, os.urandom(16)))
            assert await shelf.store.renew([old, other, new], 30.0) == {shelf.p}
            result = await shelf.store.commit(shelf.request((old, key, 0), (other, free, 1)))
            assert result.refused == {shelf.p}
            assert await self.emitted(shelf, new) == ([1] if "emits" in self.guarantees else [])
            taken = await shelf.claim(new, key)
            assert taken == (AGAIN if "deliveries" in self.guarantees else FRESH), "not taken over at once"
            assert (await shelf.claim(other, free)).verdict == "done"
            assert not (await shelf.store.commit(shelf.request((new, key, 2)))).refused

    @needs("anywhere")
    async def test_a_key_is_known_from_another_partition(self) -> None:
        """Whoever sent it there, and whoever handled it here."""
        async with self.shelf() as shelf:
            one, two, key = await shelf.lease(shelf.p), await shelf.lease(shelf.q, "two"), os.urandom(16)
            await shelf.claim(one, key)
            await shelf.store.commit(shelf.request((one, key, 0)))
            assert (await shelf.claim(two, key)).verdict == "done"

    @needs("anywhere")
    async def test_a_live_claim_of_another_partition_is_busy_until_it_expires(self) -> None:
        """Then it is taken over, and the first owner's commit of the whole partition is refused, all or nothing."""
        async with self.shelf() as shelf:
            one, two = await shelf.lease(shelf.p), await shelf.lease(shelf.q, "two")
            key, innocent = os.urandom(16), os.urandom(16)
            assert [await shelf.claim(one, each) for each in (innocent, key)] == [FRESH] * 2
            assert (await shelf.claim(two, key)).verdict == "busy"
            assert not await shelf.store.renew([one], 0.05)
            await asyncio.sleep(0.1)
            assert await shelf.claim(two, key) == AGAIN
            assert not await shelf.store.renew([one], 30.0), "nobody took the partition itself"
            result = await shelf.store.commit(shelf.request((one, innocent, 0), (one, key, 1)))
            assert result.refused == {shelf.p}
            assert await self.emitted(shelf, one) == []
            assert (await shelf.claim(one, innocent)).verdict == "fresh", "half a flush was written"
            assert (await shelf.claim(one, key)).verdict == "busy"

    @needs("anywhere")
    async def test_release_frees_lease_and_claims(self) -> None:
        """Another partition need not wait; what was finished stays done; an old lease frees nothing of a newer."""
        async with self.shelf() as shelf:
            lease, other = await shelf.lease(shelf.p), await shelf.lease(shelf.q)
            done, open_ = os.urandom(16), os.urandom(16)
            await shelf.claim(lease, done)
            await shelf.claim(lease, open_)
            await shelf.store.commit(shelf.request((lease, done, 0)))
            await shelf.store.release([lease])
            assert (await shelf.claim(other, open_), (await shelf.claim(other, done)).verdict) == (FRESH, "done")
            newer = await shelf.lease(shelf.q, "two")
            await shelf.claim(newer, open_)
            await shelf.store.release([other])
            assert not await shelf.store.renew([newer], 30.0)
            third = await shelf.lease(shelf.p, "three")
            assert (await shelf.claim(third, open_)).verdict == "busy"

    @needs("deliveries")
    async def test_after_the_first_death_only_deliveries_that_run_alone_are_counted(self) -> None:
        """A claim that is one of many says how often it will have been delivered, and counts nothing more."""
        async with self.shelf() as shelf:
            key, counts = os.urandom(16), []
            for solo in (False, False, False, True, False, True):
                claimed = await shelf.claim(await shelf.lease(shelf.p), key, solo=solo)
                assert claimed.verdict == "fresh"
                counts.append(claimed.deliveries)
            assert counts == [1, 2, 3, 3, 4, 4]

    async def test_the_same_commit_again_writes_nothing_twice(self) -> None:
        """As after an error whose outcome nobody knows."""
        async with self.shelf() as shelf:
            lease, key = await shelf.lease(shelf.p), os.urandom(16)
            await shelf.claim(lease, key)
            for _ in range(2):
                result = await shelf.store.commit(shelf.request((lease, key, 3)))
                assert not result.refused
                assert await self.emitted(shelf, lease) == self.durable(3)

    async def test_a_key_is_forgotten_when_the_group_is_a_ttl_beyond_it(self) -> None:
        """In log time: of the partition furthest behind, and not before every partition's is known."""
        async with self.shelf() as shelf:
            leases = [await shelf.lease(shelf.p), await shelf.lease(shelf.q)]
            keys = [os.urandom(16) for _ in range(3)]
            for key, log_ms in zip(keys, (1_000, 5_000, 9_000), strict=True):
                request = ClaimRequest(shelf.p, key, b"12345678", "service.handler", 7, "flow", log_ms)
                await shelf.store.claim(leases, [request])
                await shelf.store.commit(shelf.request((leases[0], key, 0)))
            topics, known = [shelf.p.topic], {shelf.p: 20_000}
            if "anywhere" in self.guarantees:
                await shelf.store.renew(leases, 30.0, known)
                assert await self.purged(shelf, topics) == 0, "the other partition's progress is not known yet"
                await shelf.store.renew(leases, 30.0, {shelf.q: 10_000})
                assert await self.purged(shelf, topics) == 1
                assert await self.verdicts(shelf, leases[0], keys) == ["fresh", "done", "done"]
            await shelf.store.renew(leases, 30.0, {**known, shelf.q: 14_500})
            assert await self.purged(shelf, topics) > 0
            assert (await self.verdicts(shelf, leases[0], keys))[:2] == ["fresh"] * 2
            (held,) = (await shelf.store.stats()).values()
            assert held.progress_ms in (14_500, 20_000)

    async def purged(self, shelf: Shelf, topics: list[str]) -> int:
        """How many keys a ttl of 8 s lets go of, all calls together."""
        total = 0
        while gone := await shelf.store.purge(shelf.group, topics, 8_000):
            total += gone
        return total

    async def verdicts(self, shelf: Shelf, lease: Lease, keys: list[bytes]) -> list[str]:
        """What is known of each key."""
        return [(await shelf.claim(lease, key)).verdict for key in keys]

    @needs("outbox")
    async def test_the_outbox_is_kept_until_sent(self) -> None:
        """In order, for the next owner of the partition and nobody else's."""
        async with self.shelf() as shelf:
            lease, keys = await shelf.lease(shelf.p), [os.urandom(16) for _ in range(3)]
            for key in keys:
                await shelf.claim(lease, key)
            units = [(lease, key, number) for number, key in enumerate(keys)]
            result = await shelf.store.commit(shelf.request(*units))
            assert [record for _, record in result.outbox] == [shelf.emit(number) for number in range(3)]
            newer, other = await shelf.lease(shelf.p, "two"), await shelf.lease(shelf.q)
            pending = await shelf.store.pending(newer)
            assert (pending, await shelf.store.pending(other)) == (result.outbox, [])
            await shelf.store.sent([pending[1][0]])
            assert await self.emitted(shelf, newer) == [0, 2]
            for _ in range(2):
                await shelf.store.sent([row for row, _ in pending])
            assert await shelf.store.pending(newer) == []

    @needs("emits")
    async def test_emits_are_on_the_log(self) -> None:
        """As they were given, in order, and none is left to be sent."""
        async with self.shelf() as shelf:
            lease, keys = await shelf.lease(shelf.p), [os.urandom(16) for _ in range(3)]
            for key in keys:
                await shelf.claim(lease, key)
            result = await shelf.store.commit(shelf.request(*((lease, key, n) for n, key in enumerate(keys))))
            assert (result.outbox, await shelf.store.pending(lease)) == ([], [])
            found = await self.log().scan([shelf.output], since_ms=0)
            assert [ProducerRecord(each.topic, *each[3:6]) for each in found] == [shelf.emit(n) for n in range(3)]

    @needs("offset")
    async def test_the_offset_is_committed_with_its_units_or_not_at_all(self) -> None:
        """The group's next member stands where the last commit that was not refused said."""
        async with self.shelf() as shelf:
            old, key = await shelf.lease(shelf.p), os.urandom(16)
            await shelf.claim(old, key)
            new = await shelf.lease(shelf.p, "two")
            stage = Stage(self.log(), 10.0)
            stage.group = shelf.group
            member = await stage.join(shelf.p.topic, None)
            await stage.until(lambda: shelf.p in member.owned, "an assignment")
            await shelf.store.commit(shelf.request((old, key, 0)))
            assert await member.consumer.position(shelf.p, "earliest") == 0
            await shelf.claim(new, key)
            await shelf.store.commit(shelf.request((new, key, 0)))
            await shelf.lease(shelf.p, "three")  # as a next owner does before it reads: Kafka answers a commit early
            assert await member.consumer.position(shelf.p, "earliest") == 8
            await stage.leave(member)

    @needs("rows")
    async def test_rows_are_part_of_the_commit(self) -> None:
        """Of a handler that raises nothing is written, what is behind it in its lane is not invoked, the rest is."""
        async with self.shelf() as shelf:
            lease, keys, names = await shelf.lease(shelf.p), [os.urandom(16) for _ in range(4)], _names(4)
            for key in keys:
                await shelf.claim(lease, key)
            lanes = ("a", "b", "b", "a")
            units = tuple(self.inside(shelf, lease, keys[n], names[n], n, lanes[n], fails=n == 1) for n in range(4))
            request = CommitRequest({shelf.p: lease}, (), {}, units)
            result = await shelf.store.commit(request)
            assert [type(each) for each in result.transacted] == [Finished, ZeroDivisionError, type(None), Finished]
            assert sorted(await self.found(shelf, names)) == sorted([names[0], names[3]])
            assert await self.emitted(shelf, lease) == self.durable(0, 3)
            verdicts = [(await shelf.claim(lease, key)).verdict for key in keys]
            assert verdicts == ["done", "fresh", "fresh", "done"]

    @needs("rows")
    async def test_rows_of_a_fenced_owner_are_not_written(self) -> None:
        """Its handler is not even invoked."""
        async with self.shelf() as shelf:
            lease, key, names = await shelf.lease(shelf.p), os.urandom(16), _names(1)
            await shelf.claim(lease, key)
            await shelf.lease(shelf.p, "two")
            unit = self.inside(shelf, lease, key, names[0], 0, "a")
            result = await shelf.store.commit(CommitRequest({shelf.p: lease}, (), {shelf.p: 8}, (unit,)))
            assert result.refused == {shelf.p}
            assert list(result.transacted) == [None]
            assert await self.found(shelf, names) == []

    @needs("rows")
    async def test_the_same_commit_again_writes_no_row_twice(self) -> None:
        """As after an error whose outcome nobody knows: neither the handler's row nor its emit."""
        async with self.shelf() as shelf:
            lease, key, names = await shelf.lease(shelf.p), os.urandom(16), _names(1)
            await shelf.claim(lease, key)
            unit = self.inside(shelf, lease, key, names[0], 0, "a")
            for _ in range(2):
                await shelf.store.commit(CommitRequest({shelf.p: lease}, (), {shelf.p: 8}, (unit,)))
            assert len(await self.found(shelf, names)) == 1, "the row was written twice"
            assert await self.emitted(shelf, lease) == self.durable(0)

    async def _lost(self, claiming: Awaitable[object]) -> None:
        try:
            await claiming
        except LeaseLost:
            return
        raise AssertionError("a claim under an older epoch was answered")


def _names(count: int) -> list[str]:
    return [uuid4().hex for _ in range(count)]
