"""TCP proxies before brokers, which delay, cut, half-close and mute what goes through. They know no Kafka."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

CHUNK_BYTES = 65_536


class Link:
    """One client's connection, and ours to the broker behind."""

    def __init__(self, client: asyncio.StreamWriter, broker: asyncio.StreamWriter) -> None:
        self.client = client
        self.broker = broker
        self.mute = False

    def abort(self) -> None:
        """Both sides see a reset."""
        for writer in (self.client, self.broker):
            end = writer.get_extra_info("socket")
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # else it is an end
            writer.transport.abort()

    def half_close(self) -> None:
        """The client sees the end of what it reads; what it sends still reaches the broker, the answers are lost."""
        self.mute = True
        with suppress(OSError, RuntimeError):
            self.client.write_eof()


class Proxy:
    """Listens on `port` of 127.0.0.1 and connects each client with the port `behind` as it is then.

    Attributes:
        delay_s: Each piece of data waits so long, either way; pieces of one connection in turn.
        mute: What brokers answer is lost, also on new connections, and nobody is told.
    """

    def __init__(self) -> None:
        self.port = 0
        self.behind = 0
        self.delay_s = 0.0
        self.mute = False
        self.links: set[Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Proxy"]:
        """Serve until the end of the block; no connection outlives it."""
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=5)
            await server.wait_closed()

    def cut(self) -> int:
        """Reset all connections; how many."""
        links = list(self.links)
        for link in links:
            link.abort()
        return len(links)

    def half_close(self) -> int:
        """Close one way of all connections; how many."""
        links = list(self.links)
        for link in links:
            link.half_close()
        return len(links)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind, ahead = await asyncio.open_connection("127.0.0.1", self.behind)
        except OSError:
            await _close(writer)  # as a port that nobody listens on, but for a moment
            return
        link = Link(writer, ahead)
        self.links.add(link)
        try:
            await asyncio.gather(self._pump(link, reader, ahead), self._pump(link, behind, writer))
        finally:
            self.links.discard(link)
            await _close(writer)
            await _close(ahead)

    async def _pump(self, link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what comes, and its end."""
        try:
            while data := await reader.read(CHUNK_BYTES):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if writer is link.client and (link.mute or self.mute):
                    continue
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):  # the other side is gone, or closing
            link.abort()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
