"""What a run of chaos is judged by finds what is wrong; its proxy does what it says. Neither needs a server."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
import pytest

from choreo import Event
from choreo import envelope as cloudevents
from choreo.envelope import Envelope
from choreo.record import Record
from handlers.order_fulfilment.ledger import reconcile
from tests.integration.chaos.entries import EntryBooked, EntryMade, EntryMirrored, EntryNoted
from tests.integration.chaos.network import Proxy
from tests.integration.chaos.outcome import Kept, Outcome, outcome_of

EMITS = ((EntryBooked, "bookkeeper"), (EntryNoted, "clerk"), (EntryMirrored, "mirror"))
NUMBERS = 4
Rows = list[tuple[str, str, int]]


def record(event: Event, source: str, id_: str, offset: int) -> Record:
    """One event of account `a` at its place."""
    headers = cloudevents.write(Envelope(id_, f"/{source}", event.event_type, version=1))
    return Record(event.event_topic, 0, offset, event.record_key(), event.payload(), headers, 0)


def flawless() -> tuple[list[Record], Rows]:
    """Four entries of one account and all that comes of them."""
    records, rows = [], []
    for n in range(NUMBERS):
        records.append(record(EntryMade(account="a", number=n), "shop", f"a-{n}", n))
        for kind, source in EMITS:
            records.append(record(kind(account="a", number=n), source, f"{source}-{n}", n))
            rows.append((kind.event_type, "a", n))
    return records, rows


def judged(records: Sequence[Record], rows: Rows) -> Outcome:
    """What is said of it."""
    kept = Kept(reconcile([], orders=()), [], [], [], rows)
    found = sorted(records, key=lambda each: each[:3])
    return outcome_of(found, kept, placed=(), made=[("a", n) for n in range(NUMBERS)])


def test_what_is_right_is_found_right() -> None:
    """And each count says in how many it was counted."""
    found = judged(*flawless())
    assert (found.lost, found.twice, found.reordered, found.dead_letters, found.problems) == (0, 0, 0, 0, [])
    assert (found.events_in, found.events_out, found.records) == (NUMBERS, 3 * NUMBERS, 4 * NUMBERS)
    assert (found.lost_of, found.twice_of, found.reordered_of) == (7 * NUMBERS, 6 * NUMBERS, 7 * NUMBERS)


@pytest.mark.parametrize("topic", ["entries", "booked", "noted", "mirrored"])
def test_a_record_that_is_not_there_is_lost(topic: str) -> None:
    """On any topic."""
    records, rows = flawless()
    left = [each for each in records if (each.topic, each.offset) != (topic, 2)]
    assert judged(left, rows).lost == 1


def test_rows_are_lost_and_twice_and_late() -> None:
    """Each for itself."""
    records, rows = flawless()
    assert judged(records, rows[:-1]).lost == 1
    assert judged(records, [*rows, rows[-1]]).twice == 1
    assert judged(records, [*rows[-3:], *rows[:-3]]).reordered == 3 * (NUMBERS - 1)


def test_a_resend_is_counted_by_pair_and_is_no_effect_twice() -> None:
    """The same under another id is."""
    records, rows = flawless()
    resent = judged([*records, record(EntryNoted(account="a", number=1), "clerk", "clerk-1", 9)], rows)
    assert (resent.resent, resent.twice, resent.reordered) == ({"Redis": 1}, 0, 0)
    again = judged([*records, record(EntryNoted(account="a", number=1), "clerk", "other", 9)], rows)
    assert (again.twice, again.reordered) == (1, 1)


def test_emits_out_of_order_and_dead_letters_are_told() -> None:
    """Two entries of an account that changed places; something in a topic of dead letters."""
    records, rows = flawless()
    swapped = [each._replace(offset=2 + (each.offset == 2)) if each.offset in (2, 3) else each for each in records]
    swapped = [new if new.topic == "booked" else old for new, old in zip(swapped, records, strict=True)]
    assert judged(swapped, rows).reordered == 1
    dead = Record("clerk.dlq", 0, 0, None, orjson.dumps({}), (), 0)
    assert judged([*records, dead], rows).dead_letters == 1


@asynccontextmanager
async def echoed() -> AsyncIterator[tuple[Proxy, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A server that gives back what it gets, and a connection to it through a proxy."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(100):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with Proxy().open() as proxy:
        proxy.behind = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            writer.write(b"one")
            assert await reader.read(100) == b"one"
            yield proxy, reader, writer
        finally:
            writer.close()
            server.close()


async def test_proxy_delays() -> None:
    """Either way."""
    async with echoed() as (proxy, reader, writer):
        proxy.delay_s = 0.2
        begun_s = time.monotonic()
        writer.write(b"two")
        assert await reader.read(100) == b"two"
        assert time.monotonic() - begun_s > 0.39


async def test_proxy_cuts() -> None:
    """With a reset, not an end."""
    async with echoed() as (proxy, reader, _):
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read(100)
        await asyncio.sleep(0.05)
        assert proxy.links == set()


async def test_proxy_half_closes() -> None:
    """The client reads an end, and its own way is still open."""
    async with echoed() as (proxy, reader, writer):
        proxy.half_close()
        assert await reader.read(100) == b""
        writer.write(b"two")
        await writer.drain()
        await asyncio.sleep(0.05)
        assert len(proxy.links) == 1


async def test_proxy_is_mute() -> None:
    """Nothing comes, no end either; afterwards it does."""
    async with echoed() as (proxy, reader, writer):
        proxy.mute = True
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.2)
        proxy.mute = False
        writer.write(b"three")
        assert await reader.read(100) == b"three"
