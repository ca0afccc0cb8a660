"""Parked keys on the embedded broker: declared, refused, looked at, released and skipped by commands."""

import asyncio
import importlib
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from choreo import App, Delayed, Event, RetryPolicy, Service
from choreo.envelope import Envelope, write
from choreo.errors import ConfigurationError, DeclarationError
from choreo.flow.drawing import outcome
from choreo.flow.timeline import Handling
from choreo.granting import needs
from choreo.opening import open_store, open_transport
from choreo.record import ProducerRecord, Record
from choreo.running import Running, check_pair
from choreo.runtime.clock import SystemClock
from choreo.runtime.emitting import original
from choreo.runtime.levels import Gauge
from choreo.testing import TestApp
from tests.tea_app import choreo

MODULE = """
from pathlib import Path

from choreo import App, Event, RetryPolicy, Service

class Asked(Event, type="tea.asked", version=1, topic="asks", key="who"):
    who: str
    cups: int = 1

class Poured(Event, type="tea.poured", version=1, topic="pours", key="who"):
    who: str
    cups: int

kitchen = Service("kitchen", retry=RetryPolicy(1))

@kitchen.handler(Asked, order=ORDER, name=NAME)
def pour(asked: Asked) -> Poured:
    if asked.cups > 9 and Path("broken").exists():
        raise ConnectionError("a secret")
    return Poured(who=asked.who, cups=asked.cups)

app = App(kitchen)
"""
TARGET = "parked_for_tests:app"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an app whose handler is broken; Ada's second event of three waits, and so does her third."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHOREO_BROKER", "embedded:tea.db")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    declare(tmp_path)
    (tmp_path / "broken").touch()
    choreo("topics", "apply", TARGET)
    for who, cups in (("Ada", 1), ("Ada", 10), ("Ada", 2), ("Bob", 3)):
        publish(who, cups)
    handle(4)
    yield tmp_path
    sys.modules.pop("parked_for_tests", None)


def declare(folder: Path, *, order: str | None = "key", name: str = "pour") -> None:
    """Write the app's next version."""
    (folder / "parked_for_tests.py").write_text(MODULE.replace("ORDER", repr(order)).replace("NAME", repr(name)))
    importlib.invalidate_caches()
    sys.modules.pop("parked_for_tests", None)


def publish(who: str, cups: int) -> None:
    """One event."""
    choreo("publish", TARGET, "tea.asked", f"who={who}", f"cups:={cups}")


def handle(units: int) -> Counter[str]:
    """Run the service until so many units are done; what it counted."""

    async def run() -> Counter[str]:
        async with importlib.import_module("parked_for_tests").app.running(broker="embedded:tea.db") as running:
            counts: Counter[str] = running.workers["kitchen"].counts
            async with asyncio.timeout(20):
                names = ("handled", "parked", "unparked", "dead_letters", "duplicates")
                while sum(counts[name] for name in names) < units:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.01)
            return counts

    return asyncio.run(run())


def parked(*arguments: str) -> list[dict[str, Any]]:
    """Parked keys as a program gets them."""
    found: list[dict[str, Any]] = json.loads(choreo("dlq", "parked", TARGET, "--json", *arguments).stdout)["parked"]
    return found


def on_log(topic: str) -> list[Record]:
    """Its records."""

    async def scan() -> list[Record]:
        transport = open_transport("embedded:tea.db")
        await transport.open()
        found = await transport.scan([topic], since_ms=0)
        await transport.close()
        return list(found)

    return asyncio.run(scan())


def cups() -> list[int]:
    """What was poured for Ada, in order."""
    return [json.loads(each.value or b"")["cups"] for each in on_log("pours") if each.key == b"Ada"]


def test_log_has_the_stack_of_what_failed_and_not_its_words(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of a dead letter: what an exception says may hold a secret."""
    caplog.set_level(logging.INFO, "choreo.exceptions")
    publish("Cyd", 10)
    assert handle(1)["parked"] == 1
    assert "parked: asks/" in caplog.text
    assert "ConnectionError" in caplog.text
    assert "parked_for_tests.py" in caplog.text
    assert "ConnectionError: a secret" not in caplog.text


def test_parked_says_what_waits_and_why(here: Path) -> None:
    """One line a key; the message of an exception, which may hold a secret, is not told."""
    (row,) = parked()
    told = {name: row[name] for name in ("key", "service", "handler", "events", "reason", "attempts", "releases")}
    assert told == {
        "key": "Ada",
        "service": "kitchen",
        "handler": "pour",
        "events": 2,
        "reason": "handler_failed",
        "attempts": 1,
        "releases": 0,
    }
    assert (row["type"], row["due_ms"], row["original"]["topic"]) == ("tea.asked", None, "asks")
    assert row["detail"].startswith("ConnectionError at pour:")
    said = choreo("dlq", "parked", TARGET).stdout
    assert "Ada  kitchen.pour  2" in said
    assert "1 keys are parked" in said
    assert "secret" not in said
    assert parked("--handler", "kitchen.pour", "--key", "Ada") == [row]
    assert parked("--handler", "other.pour") == parked("--handler", "brew") == parked("--key", "Bob") == []
    assert (cups(), on_log("kitchen.dlq")) == ([1], [])


def test_release_gives_what_waits_to_the_handler_in_its_order(here: Path) -> None:
    """Not in a dry run; who did it and why is on the log. What came meanwhile waits its turn."""
    said = choreo("dlq", "release", TARGET, "Ada", "--dry-run").stdout
    assert "would release: 1 of kitchen.pour" in said
    assert on_log("kitchen.replay") == []
    publish("Ada", 4)
    handle(1)
    (here / "broken").unlink()
    told = json.loads(choreo("dlq", "release", TARGET, "--by", "me", "--note", "mended", "--yes", "--json").stdout)
    assert (told["done"], told["handlers"]) == (1, {"kitchen.pour": 1})
    assert handle(3) == Counter(handled=3, emitted=3)
    assert cups() == [1, 10, 2, 4]
    assert parked() == []
    first, *others = [dict(each.headers) for each in on_log("kitchen.replay")]
    assert (first["choreo-replay-by"], first["choreo-replay-note"]) == (b"me", b"mended")
    assert ["choreo-replay-by" in each for each in others] == [False, False]
    publish("Ada", 5)
    handle(1)
    assert cups()[-1] == 5
    assert len(on_log("kitchen.replay")) == 3
    choreo("dlq", "release", TARGET, "Ada", "--yes", code=2)  # it is parked no more


def test_release_too_early_changes_nothing_but_the_count(here: Path) -> None:
    """And the same order twice is one."""
    for _ in range(2):
        choreo("dlq", "release", TARGET, "Ada", "--yes")
    assert handle(2) == Counter(parked=1, duplicates=1, failed_attempts=1)
    (row,) = parked()
    assert (row["events"], row["attempts"], row["releases"]) == (2, 2, 1)
    assert cups() == [1]


def test_skip_takes_the_event_that_failed_out(here: Path) -> None:
    """Those behind it go on; released as well, it is the one or the other."""
    choreo("dlq", "skip", TARGET, "Ada", "--note", "test order", "--yes")
    choreo("dlq", "release", TARGET, "Ada", "--yes")
    counts = handle(3)
    assert (counts["unparked"], counts["handled"], counts["duplicates"]) == (1, 1, 1)
    assert (cups(), parked()) == ([1, 2], [])
    assert choreo("dlq", "list", TARGET, "--json").exit_code == 0  # an order for a queue is about no dead letter
    choreo("dlq", "skip", TARGET, code=2)  # all of them are skipped by nobody


def test_renamed_handler_is_missed_and_the_first_name_brings_it_back(here: Path) -> None:
    """Nothing can be released to it; what waits can be skipped, or goes on when the handler has its name again."""
    declare(here, name="brew")
    said = choreo("dlq", "release", TARGET, "--yes", code=1).stdout
    assert "kitchen has no handler 'pour' any more" in said
    declare(here)
    (here / "broken").unlink()
    choreo("dlq", "release", TARGET, "--yes")
    handle(2)
    assert cups() == [1, 10, 2]


def test_queue_runs_dry_when_the_handler_parks_no_more(here: Path) -> None:
    """`order=` was taken away: new events pass what waits, and what waits is handled in its order all the same."""
    choreo("dlq", "release", TARGET, "--yes")
    declare(here, order=None)
    publish("Ada", 4)
    handle(2)
    assert cups() == [1, 4]
    assert [row["releases"] for row in parked()] == [1]  # it failed again, and kept its place
    (here / "broken").unlink()
    choreo("dlq", "release", TARGET, "--yes")
    handle(2)
    assert cups() == [1, 4, 10, 2]
    assert parked() == []


def test_what_cannot_be_parked_is_a_dead_letter(here: Path) -> None:
    """A record without a key has no order to keep; one that is too large could not come back."""
    records = []
    for id_, key, more in (("1", None, ""), ("2", b"Eve", "x" * 1_000_000)):
        value = json.dumps({"who": "Eve", "cups": 10, "more": more}).encode()
        envelope = Envelope(id_, "/s", "tea.asked", version=1, correlationid=id_)
        records.append(ProducerRecord("asks", key, value, write(envelope)))

    async def send() -> None:
        transport = open_transport("embedded:tea.db")
        await transport.open()
        await transport.send(records)
        await transport.close()

    asyncio.run(send())
    handle(2)
    assert [original(each)["reason"] for each in on_log("kitchen.dlq")] == ["handler_failed"] * 2
    assert [row["key"] for row in parked()] == ["Ada"]


def test_levels_count_parked_keys(here: Path) -> None:
    """For whoever wants metrics; of a service without them nothing is told."""

    async def look(running: Running) -> int | None:
        return (await Gauge(running.workers["kitchen"]).look()).parked_keys

    async def looked() -> int | None:
        async with importlib.import_module("parked_for_tests").app.running(broker="embedded:tea.db") as running:
            return await look(running)

    assert asyncio.run(looked()) == 1
    declare(here, order=None)
    assert asyncio.run(looked()) is None


def test_trace_says_what_became_of_an_event_in_a_queue(here: Path) -> None:
    """By the log and the store: parked, released by whom, handled; and that those behind it came by themselves."""
    flow = parked()[0]["correlation_id"]
    assert "parked: handler_failed" in choreo("trace", flow, TARGET).stdout
    (here / "broken").unlink()
    choreo("dlq", "release", TARGET, "--by", "me", "--note", "mended", "--yes")
    handle(2)
    said = choreo("trace", flow, TARGET).stdout
    assert "released to pour by me (mended)" in said
    assert "handled" in said


def test_trace_says_that_an_event_is_parked() -> None:
    """In words."""
    said = [
        outcome(Handling("kitchen.pour", each))[0] for each in ("parked:handler_failed", "parked:", "unparked:drop")
    ]
    assert said == ["parked: handler_failed", "waits: its key is parked", "dropped from its queue"]


class Keyed(Event, type="parked.keyed", version=1, topic="keyed", key="who"):
    """With a key."""

    who: str


class Keyless(Event, type="parked.keyless", version=1, topic="keyless"):
    """Without."""


def service_of(**options: Any) -> Service:
    """With one handler."""
    service = Service("desk")

    @service.handler(Keyed, **options)
    def take(keyed: Keyed) -> None:
        """Nothing."""

    return service


def test_declarations_that_cannot_hold_are_refused() -> None:
    """At import, with what to write instead."""
    with pytest.raises(DeclarationError, match="order='lane' must be \"key\""):
        service_of(order="lane")
    with pytest.raises(DeclarationError, match=r'Keyless has none; write class Keyless.*key="order_id"'):

        @Service("desk").handler(Keyed, Keyless, order="key")
        def take(event: Keyed | Keyless) -> None:
            """Nothing."""


@pytest.mark.parametrize("store", ["redis://localhost/0", "changelog"])
def test_store_without_queues_is_refused(store: str) -> None:
    """At start, with those that have them."""
    (plan,) = App(service_of(order="key")).plans(["desk"])
    opened = open_store(store, "desk", "desk", open_transport("kafka://localhost:1"), clock=SystemClock())
    with pytest.raises(ConfigurationError, match=r'desk.take has order="key".*Take a store in PostgreSQL or SQLite'):
        check_pair(plan, opened)


async def test_topic_of_replays_is_needed(tmp_path: Path) -> None:
    """What is parked comes back by it, so it is missed before anything is parked; it is made where topics are."""
    app, broker = App(service_of(order="key")), f"embedded:{tmp_path}/log.db"
    transport = open_transport(broker)
    await transport.open()
    await transport.create_topics([each for each in app.topic_specs() if not each.name.endswith(".replay")])
    with pytest.raises(ConfigurationError, match=r"these topics do not exist: desk\.replay"):
        async with app.running(broker=broker):
            pass
    async with app.running(broker=broker, create_topics=True) as running:
        assert "desk.replay" in running.workers["desk"].topics
    assert (await transport.topics())["desk.replay"].partitions == 1
    await transport.close()


class Taken(Event, type="parked.taken", version=1, topic="taken", key="who"):
    """It was taken."""

    who: str
    number: int


class Given(Event, type="parked.given", version=1, topic="given", key="who"):
    """To be taken."""

    who: str
    number: int


@pytest.mark.parametrize("retry", [RetryPolicy(2), Delayed(60, 600)], ids=["released", "delayed"])
async def test_flow_with_a_parked_key_in_virtual_time(retry: RetryPolicy | Delayed) -> None:
    """As an application tests its own: what is parked is seen, and released, or comes back when it is due."""
    service, broken = Service("desk"), [True]

    @service.handler(Given, retry=retry, order="key")
    async def take(given: Given) -> Taken:
        if given.number == 1 and broken[0]:
            raise ConnectionError
        return Taken(who=given.who, number=given.number)

    async with TestApp(App(service)) as t:
        flows = [await t.publish(Given(who="Ada", number=number)) for number in range(3)]
        await t.settle()
        assert [(head.reason, head.behind) for head in await t.parked()] == [("handler_failed", 1)]
        broken[0] = False
        if isinstance(retry, Delayed):
            await t.advance(seconds=30)
            assert len(await t.parked()) == 1
            await t.advance(seconds=40)
        else:
            await t.release()
        await t.settle()
        assert await t.parked() == []
        assert t.dead_letters == []
        assert [flow.types for flow in flows] == [["parked.given", "parked.taken"]] * 3
        taken = [envelope.causationid for flow in flows for envelope in flow.envelopes[1:]]
        assert taken == [flow.reference.id for flow in flows]


def test_a_service_that_parks_may_write_its_replays() -> None:
    """What follows in a queue it sends to itself; others are granted no more than before."""
    for options, wanted in (({"order": "key"}, ("Read", "Write")), ({}, ("Read",))):
        rights = needs(service_of(**options), ["keyed"], [], str, changelog=False)
        assert [each.operations for each in rights if each.name == "desk.replay"] == [wanted]


def test_delays_of_a_parked_key_need_no_topic() -> None:
    """The event waits in its queue."""
    assert service_of(order="key", retry=Delayed(5, 9)).delays_s == []
    assert service_of(retry=Delayed(5, 9)).delays_s == [5, 9]
