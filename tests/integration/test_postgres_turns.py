"""Whose turn it is in a commit with handlers inside: what is done already, what is handed back, what is charged."""

import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from choreo.errors import ConfigurationError, LeaseLost
from choreo.ports import CommitRequest, Finished, Transacted
from choreo.stores.postgres import turns as postgres_turns
from tests.integration.test_postgres_commits import ASYNC, PLAIN, Bench, opened, writer


@pytest.fixture
async def bench(postgres: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """What one test plays on."""
    async with opened(postgres, monkeypatch) as bench:
        yield bench


async def test_a_deferred_constraint_is_charged_to_its_event(bench: Bench) -> None:
    """It fails at the end of the transaction, where nobody can tell whose it was: then they run one by one."""
    late = f"INSERT INTO {bench.table} (name, late) VALUES ('{{}}', 'same')"
    handlers = [writer(ASYNC, late.format(name)) for name in "abc"]
    result = await bench.commit(*handlers)
    assert [type(each) for each in result.transacted] == [Finished, type(None), type(None)]
    result = await bench.store.commit(bench.request(*handlers))
    assert [type(each) for each in result.transacted] == [Finished, psycopg.errors.UniqueViolation, type(None)]
    assert await bench.names() == ["a"]


async def test_what_is_done_is_not_invoked_again(bench: Bench) -> None:
    """A commit with an unknown end may have landed; a claim that is gone is told as lost."""
    calls: list[int] = []

    async def once(transaction: Any) -> None:
        calls.append(1)
        await bench.writes("once")(transaction)

    await bench.commit(once)
    (again,) = (await bench.store.commit(bench.request(once))).transacted
    assert isinstance(again, Finished)
    assert (again.outcome, len(calls), len(await bench.store.pending(bench.lease))) == ("duplicate", 1, 1)
    bench.keys = [os.urandom(16)]
    (unclaimed,) = (await bench.store.commit(bench.request(once))).transacted
    assert (type(unclaimed), len(calls)) == (LeaseLost, 1)


async def test_a_long_batch_is_handed_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is always invoked; what a lane waits for is not overtaken."""
    monkeypatch.setattr(postgres_turns, "INVOKING_S_MAX", 0.0)
    result = await bench.commit(*(bench.writes(name) for name in "abc"))
    assert [type(each) for each in result.transacted] == [Finished, type(None), type(None)]
    assert await bench.names() == ["a"]


async def test_two_kinds_in_one_flush_take_turns(bench: Bench) -> None:
    """One transaction has one kind; the other's units are handed back, and what is behind them in their lane."""
    bench.keys = [os.urandom(16) for _ in range(4)]
    for key in bench.keys:
        await bench.shelf.claim(bench.lease, key)
    kinds, lanes = (ASYNC, PLAIN, ASYNC, ASYNC), "abbc"
    units = [
        bench.unit(bench.writes(str(at), kind), key, kind, lane)
        for at, (key, kind, lane) in enumerate(zip(bench.keys, kinds, lanes, strict=True))
    ]
    left, rounds = units, []
    while left:
        result = await bench.store.commit(CommitRequest({bench.shelf.p: bench.lease}, (), {}, left))
        rounds.append([type(each) for each in result.transacted])
        left = [unit for unit, each in zip(left, result.transacted, strict=True) if each is None]
    nothing = type(None)
    assert rounds == [[Finished, nothing, nothing, Finished], [Finished, nothing], [Finished]]


async def test_the_wrong_kind_of_function_is_told(bench: Bench) -> None:
    """A coroutine cannot be given a plain connection; nor any handler what the store has not got."""
    bench.keys = [os.urandom(16)]
    await bench.shelf.claim(bench.lease, bench.keys[0])
    unit = bench.unit(bench.writes("never"), bench.keys[0], ASYNC, "a")
    for wants, is_async in ((PLAIN, True), (ASYNC, False)):
        odd = Transacted(unit.partition, unit.digest, "a", wants, is_async, unit.invoke)
        result = await bench.store.commit(CommitRequest({bench.shelf.p: bench.lease}, (), {}, (odd,)))
        assert isinstance(result.transacted[0], ConfigurationError)
    odd = Transacted(unit.partition, unit.digest, "a", "sqlite3.Connection", False, unit.invoke)
    with pytest.raises(ConfigurationError, match="none of the PostgreSQL store's"):
        await bench.store.commit(CommitRequest({bench.shelf.p: bench.lease}, (), {}, (odd,)))
