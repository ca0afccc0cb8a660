"""An application for the outbox's chaos: transactions on accounts, some of them rolled back, until it is killed.

    python -m tests.integration.outbox_writer DATABASE SCHEMA TOPIC FOLDER

Each transaction numbers an account's next entry, so that an account's events have an order of their own: 1, 2, 3 and
so on. What is to be rolled back is noted first in a file in FOLDER.
"""

import asyncio
import random
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import psycopg

from choreo.outbox import Outbox
from tests.integration.outbox_stage import Counted

ACCOUNTS = tuple(f"account-{number}" for number in range(6))
TASKS = 4
ROLLED_BACK = 0.2


class Undone(Exception):
    """To roll back."""


async def work(database: str, outbox: Outbox, undone: Path) -> AsyncIterator[None]:
    """One transaction after the other; yields after each."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        while True:
            account, attempt = random.choice(ACCOUNTS), str(uuid4())
            with suppress(Undone):
                async with connection.transaction():
                    number = await write(connection, outbox, account, attempt)
                    await outbox.add(connection, Counted(account=account, number=number, attempt=attempt))
                    await asyncio.sleep(random.uniform(0.0, 0.003))
                    if random.random() < ROLLED_BACK:
                        with undone.open("a") as file:
                            file.write(f"{attempt}\n")
                        raise Undone
            yield


async def write(connection: "psycopg.AsyncConnection[tuple[int]]", outbox: Outbox, account: str, attempt: str) -> int:
    """The account's next number; its row is locked until the transaction ends."""
    schema = outbox.table.schema
    count = f"UPDATE {schema}.account SET number = number + 1 WHERE name = %s RETURNING number"
    found = await (await connection.execute(count.encode(), (account,))).fetchone()
    assert found is not None
    insert = f"INSERT INTO {schema}.entry (account, number, attempt) VALUES (%s, %s, %s)"
    await connection.execute(insert.encode(), (account, found[0], attempt))
    return found[0]


async def main(database: str, schema: str, topic: str, folder: str) -> None:
    """Several at once."""
    outbox = Outbox("bank", schema=schema, topics={"entries": topic})
    undone = Path(folder) / f"undone-{uuid4().hex}"

    async def go_on(number: int) -> None:
        transactions = work(database, outbox, undone)
        await anext(transactions)
        print("ready", flush=True)
        async for _ in transactions:
            pass

    await asyncio.gather(*map(go_on, range(TASKS)))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
