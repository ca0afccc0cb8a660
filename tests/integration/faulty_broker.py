"""A broker with faults at will: a TCP proxy before a real one, which answers chosen requests by itself."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka.protocol.commit import OffsetFetchResponse_v3
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest_v0, AddPartitionsToTxnResponse_v0

OFFSET_FETCH, ADD_PARTITIONS_TO_TXN = 9, 24
NOT_COORDINATOR, TOPIC_AUTHORIZATION_FAILED = 16, 29
HOST = b"\0\x09127.0.0.1"

Answer = Callable[[bytes], bytes | None]
"""From a request, its header cut off, to the body of the answer; None: the broker behind is asked."""


class FaultyBroker:
    """A real broker at `address`, seen through faults.

    Clients stay on it: the port the broker advertises is replaced in what it answers. Broker and proxy are on
    127.0.0.1.
    """

    def __init__(self, behind: str) -> None:
        host, _, port = behind.partition(":")
        assert host == "127.0.0.1", "the address is looked for in answers"
        self._port = int(port)
        self.address = ""
        self.faults: dict[int, Answer] = {}
        self.answered = 0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection, until either side ends it."""
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        self.writers.add(writer)
        behind, ahead = await asyncio.open_connection("127.0.0.1", self._port)
        ways = [
            asyncio.create_task(self._forward(reader, writer, ahead)),
            asyncio.create_task(self._back(behind, writer)),
        ]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, ahead):
            each.close()
            with suppress(OSError):
                await each.wait_closed()
        await asyncio.wait(ways, timeout=5)

    async def _forward(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ahead: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size = await reader.readexactly(4)
                request = await reader.readexactly(int.from_bytes(size, "big"))
                key, client_size = int.from_bytes(request[:2], "big"), int.from_bytes(request[8:10], "big")
                fault = self.faults.get(key)
                answer = fault(request[10 + client_size :]) if fault else None
                if answer is None:
                    ahead.write(size + request)
                    continue
                self.answered += 1
                body = request[4:8] + answer
                writer.write(len(body).to_bytes(4, "big") + body)

    async def _back(self, behind: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = HOST + self._port.to_bytes(4, "big")
        ours = HOST + int(self.address.rpartition(":")[2]).to_bytes(4, "big")
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                size = await behind.readexactly(4)
                body = await behind.readexactly(int.from_bytes(size, "big"))
                writer.write(size + body.replace(theirs, ours))
                await writer.drain()


@asynccontextmanager
async def faulty_broker(behind: str) -> AsyncIterator[FaultyBroker]:
    """A proxy before the first of the brokers `behind`, without faults until they are set."""
    broker = FaultyBroker(behind.partition(",")[0])
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield broker
    finally:
        server.close()
        for writer in broker.writers:
            writer.close()
        if broker.tasks:
            await asyncio.wait(broker.tasks, timeout=5)


def no_coordinator(_: bytes) -> bytes:
    """OffsetFetch as a broker answers it that has lost the group to another one."""
    found: bytes = OffsetFetchResponse_v3(0, [], NOT_COORDINATOR).encode()
    return found


def forbidden(topic: str) -> Answer:
    """AddPartitionsToTxn for a user who may not write to `topic`."""

    def answer(request: bytes) -> bytes | None:
        if topic.encode() not in request:
            return None
        asked = AddPartitionsToTxnRequest_v0.decode(request)
        errors = [(name, [(n, TOPIC_AUTHORIZATION_FAILED) for n in numbers]) for name, numbers in asked.topics]
        found: bytes = AddPartitionsToTxnResponse_v0(0, errors).encode()
        return found

    return answer
