"""Flows of `stored_app` that an old release left half done, and that today's goes on with."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from typing import cast

from choreo.envelope import Envelope, write
from choreo.instances import TimerStore
from choreo.record import ProducerRecord
from choreo.runtime import ordering, redriving
from choreo.runtime.replaying import Mode
from choreo.testing import TestApp
from tests.upgrade.stored_app import TROUBLE, Answered, Approved, Archived, Asked, Booked, Declined, Paid, Unbooked

NOTE = 'ä, "and" \\ 😀'


ENDED = (("trip", "p-1", "compensated"), ("trip", "r-1", "completed"), ("approval", "p-1", "archived"))


ESCALATED = {("escalate", "(timer)"): len({"r-1", "r-2", "l-1", "n-1", "s-1", "u-1"})}
OVERDUE = {("answer_late", "n-1"): 1, ("answer_late", "r-2"): 1}


async def leave_flows(t: TestApp) -> None:
    """Something of each kind in the store and on the log, and two records that nobody has read."""
    TROUBLE.update({"refused", "later", "strict"})
    await t.publish(Archived(id="p-1"))
    for id_, kind in (("p-1", "plain"), ("r-1", "refused"), ("r-2", "refused"), ("n-1", "none")):
        await t.publish(Asked(id=id_, kind=kind, note=NOTE), id=f"id of {id_}")
    for note in ("first", "second"):
        await t.publish(Asked(id="s-1", kind="strict", note=note))
    await t.settle()
    await t.publish(Booked(id="p-1", room="12"))
    await t.publish(Declined(id="p-1"))
    await t.publish(Booked(id="r-1", room="13"))
    await t.settle()
    await t.advance(seconds=70)
    await _order(t, "r-2", "drop")
    await t.settle()
    await t.publish(Asked(id="l-1", kind="later", note=NOTE))
    await t.advance(seconds=1)
    await t.send(_unread(Asked(id="u-1", kind="plain", note=NOTE)))
    await _order(t, "r-1", "if-not-done")


def _unread(event: Asked) -> ProducerRecord:
    envelope = Envelope(f"id of {event.id}", "/stored", event.event_type, event.event_version)
    return ProducerRecord(event.event_topic, event.record_key(), event.payload(), write(envelope))


async def _order(t: TestApp, key: str, mode: Mode) -> None:
    """Replay or drop a dead letter."""
    services, transport = t.app.services, t.running.transport
    reading = await redriving.read(transport, list(services.values()), t.app.topic, since_ms=0)
    letters = [each for each in reading.letters if each.record.key == key.encode()]
    partitions = await ordering.partitions_of_replays(transport, [services["desk"]], t.app.topic)
    redrive = redriving.Redrive(services, t.app.topic, partitions, ordering.Operator("Ada", "a note"), 1.0)
    orders = redrive.letters(reading, letters, mode)
    assert len(orders.records) == 1
    await transport.send(orders.records)


async def answered(t: TestApp) -> Counter[tuple[str, str]]:
    """Who has answered which id, in words that are those of the question."""
    records = await t.running.transport.scan(["answered"], since_ms=0)
    read = [Answered.from_payload(each.value or b"") for each in records]
    assert {each.note for each in read} <= {"", NOTE, f"{NOTE}12", f"{NOTE}13", "first", "second"}
    return Counter((each.by, each.id) for each in read)


async def flows_go_on(t: TestApp) -> None:
    """What was unread is handled, what was handled is not, and what waited goes on when its event comes."""
    TROUBLE.clear()
    await t.settle()
    wanted = [("greet", "p-1"), ("greet", "u-1"), ("refuse", "r-1"), ("later", "l-1")]
    assert await answered(t) == dict.fromkeys(wanted, 1)
    assert [(each.reason, each.handler) for each in t.dead_letters] == [("rejected", "refuse")] * 2
    services = list(t.app.services.values())
    reading = await redriving.read(t.running.transport, services, t.app.topic, since_ms=0)
    assert sorted(reading.fate(each).state for each in reading.letters) == ["dropped", "replayed"]
    await t.publish(Asked(id="p-1", kind="plain", note=NOTE), id="id of p-1")
    await t.settle()
    assert (await answered(t))["greet", "p-1"] == 1
    assert t.running.workers["desk"].counts["duplicates"] == 4
    ((head, behind),) = [(each.reason, each.behind) for each in await t.parked()]
    assert (head, behind) == ("handler_failed", 1)
    await t.release()
    await t.publish(Approved(id="p-1"))
    await t.publish(Unbooked(id="p-1"))
    await t.publish(Paid(id="r-1"))
    await t.settle()
    found = await answered(t)
    assert found["strict", "s-1"] == 2
    assert [found[by, "p-1"] for by in ("decide", "put_away", "both")] == [1, 1, 1]
    store = cast("TimerStore", t.running.stores["trip"])
    for process, key, state in ENDED:
        found_one = await store.instance(process, key)
        assert found_one is not None
        assert (found_one[0].state, found_one[0].ended) == (state, True)


async def timers_go_off(t: TestApp, wanted: Mapping[tuple[str, str], int]) -> None:
    """What nobody approved is escalated, and what nobody answered is overdue."""
    until_s, found = time.monotonic() + 20, dict[tuple[str, str], int]()
    while found != wanted and time.monotonic() < until_s:
        found = {one: count for one, count in (await answered(t)).items() if one[0] in ("answer_late", "escalate")}
        await asyncio.sleep(0.02)
    assert found == wanted
