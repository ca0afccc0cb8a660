"""Protections of parked keys, and of the order of their events."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from choreo.core import parking, turns
from choreo.core.emission import replay_identity
from choreo.parked import Leaves, Waits
from choreo.record import ProducerRecord
from choreo.runtime import parking as runtime
from choreo.runtime.outgoing import Outgoing
from choreo.runtime.replaying import read_replay
from choreo.stores.sqlite import claim, parked
from tests.simulation.mutants.mutant import Mutant


def parked_before_those_ahead_are_on_the_log(patch: pytest.MonkeyPatch) -> None:
    """An event is given up while what came before it of its key is yet to be committed."""
    patch.setattr(turns, "held", lambda unit: False)


def queues_are_slow_to_send(patch: pytest.MonkeyPatch) -> None:
    """What the last event of a queue emits comes late on the log; the next of its key is there in the meantime."""
    real = Outgoing.send_outbox

    async def late(self: Outgoing, outbox: Sequence[Any], done: Any, leases: Any) -> None:
        replays = [read_replay(record.headers) for _, record in outbox]
        more = any(each is not None and each.parked == "head" for each in replays)
        if outbox and not more and any(id_.topic.endswith(".replay") for id_ in leases):
            await asyncio.sleep(2.0)
        await real(self, outbox, done, leases)

    patch.setattr(Outgoing, "send_outbox", late)


def queues_are_not_closed(patch: pytest.MonkeyPatch) -> None:
    """The key is parked no more from the last event's commit on."""
    queues_are_slow_to_send(patch)
    real = parked.leave
    patch.setattr(parked, "leave", lambda db, event, closes: real(db, event, closes=False))


def claims_do_not_ask(patch: pytest.MonkeyPatch) -> None:
    """No claim is told that its key is parked."""
    patch.setattr(claim, "is_parked", lambda db, queue: False)


def those_behind_are_invoked(patch: pytest.MonkeyPatch) -> None:
    """What was claimed before the parking was durable is as its claim says."""
    patch.setattr(parking, "landed", lambda unit: setattr(unit.lane, "parking", None))


def nobody_comes_for_the_one_that_waits_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """An event that finds its queue empty waits all the same."""
    real = parked.wait

    def wait(*given: Any) -> list[Any]:
        real(*given)
        return []

    patch.setattr(parked, "wait", wait)


def what_fails_again_goes_to_the_end(patch: pytest.MonkeyPatch) -> None:
    """The event that was released too early loses its place to those behind it."""
    real = parked.wait

    def wait(db: Any, group: str, event: Waits, now_ms: int) -> list[ProducerRecord]:
        if event.reason:
            db.execute("DELETE FROM choreo_parked WHERE row = ?", (event.row,))
        return real(db, group, event, now_ms)

    patch.setattr(parked, "wait", wait)


def nobody_sends_the_next(patch: pytest.MonkeyPatch) -> None:
    """The head leaves its queue, and those behind it are given to nobody."""
    real = parked.leave

    def leave(db: Any, event: Leaves, *, closes: bool) -> list[ProducerRecord]:
        real(db, event, closes=closes)
        return []

    patch.setattr(parked, "leave", leave)


def released_under_one_id(patch: pytest.MonkeyPatch) -> None:
    """What was released and failed is released again as what it was: dropped as a duplicate."""

    def identity(base: str, what: str) -> str:
        return base if what == "again" else replay_identity(base, what)

    patch.setattr(runtime, "replay_identity", identity)


PARKING = (
    Mutant(
        "parked too early",
        "an event is parked behind what is on the log",
        "parked",
        "outbox",
        parked_before_those_ahead_are_on_the_log,
    ),
    Mutant(
        "queues not closed",
        "the last event's emits come before the next event",
        "parked late",
        "outbox",
        queues_are_not_closed,
    ),
    Mutant("parked keys not asked for", "a claim says that its key is parked", "parked", "outbox", claims_do_not_ask),
    Mutant(
        "claimed before the parking",
        "those behind a parked event wait, whatever their claims said",
        "parked",
        "outbox",
        those_behind_are_invoked,
    ),
    Mutant(
        "waits for nothing",
        "an event in an empty queue is sent at once",
        "parked",
        "outbox",
        nobody_comes_for_the_one_that_waits_for_nothing,
    ),
    Mutant(
        "place lost",
        "an event that fails again keeps its place",
        "parked",
        "outbox",
        what_fails_again_goes_to_the_end,
    ),
    Mutant("next not sent", "who leaves a queue sends the next", "parked", "outbox", nobody_sends_the_next),
    Mutant("released under one id", "each release of an event is another", "parked", "outbox", released_under_one_id),
)
