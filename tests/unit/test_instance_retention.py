"""Instances that have ended are deleted by the service that runs, and what comes again for them does no harm."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from choreo import App, Event, ProcessManager
from choreo.errors import DeclarationError
from choreo.process import Saga, Step, join
from choreo.process.interpreting import Process
from choreo.running import Running
from choreo.runtime import keeping
from choreo.stores.sqlite import operated as sqlite_operated
from tests.tea_app import choreo
from tests.unit.test_saga import CardCharged, ChargeCard, OrderPlaced

RETENTION_S = 0.3
DAY_S = 86_400.0


class Sent(Event, type="errand.sent", version=1, topic="errands", key="name"):
    """Somebody goes."""

    name: str


class Returned(Event, type="errand.returned", version=1, topic="errands", key="name"):
    """And comes back."""

    name: str


class Errand(ProcessManager, version=1, by="name", retention=timedelta(seconds=RETENTION_S)):
    """On its way until it is back."""

    name: str


away, back = Errand.state("away"), Errand.final("back")


@Errand.starts(Sent, to=away)
def leave(sent: Sent) -> Errand:
    """Off."""
    return Errand(name=sent.name)


@away.on(Returned, to=back)
def arrive(self: Errand, returned: Returned) -> None:
    """There."""


app = App(Errand)


@asynccontextmanager
async def service(path: Path, **settings: Any) -> AsyncIterator[Running]:
    """It runs, and purges all the time."""
    broker = f"embedded:{path / 'errands.db'}"
    async with app.running(broker=broker, create_topics=True, lease_s=0.15, **settings) as running:
        yield running
        assert running.workers["errand"].failure is None


async def until(ask: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Wait, a moment at most, until the answer is the one that is wanted."""
    async with asyncio.timeout(15):
        while await ask() != wanted:  # noqa: ASYNC110 - it is the file that changes
            await asyncio.sleep(0.02)


async def there() -> list[str]:
    """Keys of the instances that are stored."""
    return [each.key for each in await app.instances(Errand).list()]


async def beyond_retention(running: Running) -> None:
    """The group's progress is a retention beyond now."""
    wanted_ms = (time.time() + RETENTION_S) * 1000

    async def is_beyond() -> bool:
        return ((await running.stores["errand"].stats())["errand"].progress_ms or 0) > wanted_ms

    await until(is_beyond, True)


async def ended_and_sent_again(running: Running) -> None:
    """One is away, another has come back and is forgotten; then its start is published again, and once more."""
    counts = running.workers["errand"].counts
    await running.publish(Sent(name="ann"), id="ann goes")
    await running.publish(Sent(name="bob"), id="bob goes")
    await running.publish(Returned(name="bob"), id="bob returns")

    async def bob() -> bool:
        found = await app.instances(Errand).get("bob")
        return found is not None and found.ended

    await until(bob, True)
    await until(there, ["ann"])
    handled = counts["handled"] + counts["duplicates"]
    for _ in range(2):
        await running.publish(Sent(name="bob"), id="bob goes")

    async def taken() -> int:
        return counts["handled"] + counts["duplicates"] - handled

    await until(taken, 2)


async def test_an_ended_instance_is_deleted_and_its_start_begins_no_second_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the start's key is kept; the one that is away stays, however long it takes."""
    monkeypatch.setattr(keeping, "PURGE_S", 0.05)
    async with service(tmp_path) as running:
        await ended_and_sent_again(running)
        assert await there() == ["ann"]
        assert running.workers["errand"].counts["duplicates"] == 2
        await running.publish(Sent(name="bob"), id="bob goes a year later")
        await until(there, ["ann", "bob"])


async def test_it_is_the_key_that_keeps_a_second_one_from_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the key has gone with the instance, its start is a new one: keys are to be kept for as long."""
    monkeypatch.setattr(keeping, "PURGE_S", 0.05)
    async with service(tmp_path, key_ttl_s=0.01) as running:
        await running.publish(Sent(name="bob"), id="bob goes")
        await running.publish(Returned(name="bob"), id="bob returns")
        await until(there, ["bob"])
        await until(there, [])
        await running.publish(Sent(name="bob"), id="bob goes")
        await until(there, ["bob"])


async def test_nothing_goes_before_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the default of thirty days an instance of today is there after many rounds, and late events find it."""
    monkeypatch.setattr(keeping, "PURGE_S", 0.05)
    monkeypatch.setattr(Errand, "process_retention", ProcessManager.process_retention)
    async with service(tmp_path) as running:
        await running.publish(Sent(name="bob"), id="bob goes")
        await running.publish(Returned(name="bob"), id="bob returns")
        await until(there, ["bob"])
        await asyncio.sleep(4 * RETENTION_S)
        assert await there() == ["bob"]


async def test_a_purge_is_of_some_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice in a transaction of its own; `choreo store purge` goes on until there are no more."""
    monkeypatch.setattr(sqlite_operated, "PURGE_INSTANCES_MAX", 2)
    async with service(tmp_path) as running:
        for number in range(5):
            await running.publish(Sent(name=f"{number}"))
            await running.publish(Returned(name=f"{number}"))
        store: Any = running.stores["errand"]
        topics = running.workers["errand"].topics

        async def ended() -> int:
            return sum(each.ended for each in await app.instances(Errand).list())

        await until(ended, 5)
        await beyond_retention(running)
        slices = [await store.purge_ended("errand", "errand", topics, 0) for _ in range(4)]
        assert slices == [2, 2, 1, 0]


def test_the_command_deletes_them_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the retention that is declared, beside the keys."""
    monkeypatch.chdir(tmp_path)
    target, url = f"{__name__}:app", "sqlite:errands.db"

    async def run() -> None:
        async with service(tmp_path) as running:
            await running.publish(Sent(name="bob"))
            await running.publish(Returned(name="bob"))
            await until(there, ["bob"])
            await beyond_retention(running)

    asyncio.run(run())
    said = choreo("store", "purge", target, "--store", url).stdout
    assert "errand: 0 keys forgotten, 1 ended instances deleted" in said
    assert json.loads(choreo("store", "purge", target, "--store", url, "--json").stdout) == {
        "errand": {"keys": 0, "instances": 0}
    }


def test_a_retention_is_declared_and_checked() -> None:
    """A process manager, a saga and a join have one of thirty days, unless told otherwise; None is for ever."""

    @join(by="order_id", within=timedelta(1), retention=timedelta(hours=1))
    def both(placed: OrderPlaced, charged: CardCharged | None) -> None: ...

    def saga(**options: Any) -> Process:
        step = Step(ChargeCard, ok=CardCharged)
        return Process(Saga("s", starts=OrderPlaced, by="order_id", steps=[step], **options).manager)

    assert Process(both.manager).retention_s == 3600
    assert (saga().retention_s, saga(retention=None).retention_s) == (30 * DAY_S, None)
    with pytest.raises(DeclarationError, match=r"retention=-1 day.* must be longer than nothing"):
        saga(retention=timedelta(days=-1))
