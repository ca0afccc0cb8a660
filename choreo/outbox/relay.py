"""The relay: moves an outbox's rows to the log, in order a key, however many relays there are.

One relay leads and the others stand by. Rows of one key must be sent one after the other; relays that shared the
rows out among them (`FOR UPDATE SKIP LOCKED`) would have the second event of a key sent before the first, and a lock
a share of keys would need relays to agree on shares, for a throughput that few databases are written at.
"""

import asyncio
import logging
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from choreo import envelope as cloudevents
from choreo.errors import ChoreoError, ConfigurationError, StoreError
from choreo.observing import Observing
from choreo.opening import open_transport
from choreo.outbox.rows import OutboxRow, open_rows
from choreo.outbox.table import OutboxTable
from choreo.ports import Instrument, Transport
from choreo.record import ProducerRecord
from choreo.runtime.unsaid import unsaid
from choreo.telemetry.setup import SPLIT_AFTER_S

log = logging.getLogger("choreo.relay")

BATCH_ROWS = 1000
BATCH_BYTES = 8 * 1024 * 1024
STANDBY_S = 0.5
"""How often a relay that stands by asks for the lead."""
RETRY_S, RETRY_S_MAX = 0.5, 30.0
LOOK_S = 5.0
SILENT_S_MAX = 120.0
"""Longer than any call may take; a loop that is silent for so long hangs."""


@dataclass(frozen=True, slots=True)
class RelaySettings:
    """Where and how to relay.

    Attributes:
        database: `postgresql://...` or `sqlite:PATH`.
        broker: As `choreo run --broker` takes it, or a transport that is open; `CHOREO_BROKER` unless given.
        table: The outbox.
        name: `service.name` of its spans and metrics.
        poll_s: How often it looks where nobody wakes it.
        drain_s: How long it may take to stop; what is not sent by then stays in the table.
        health_host, health_port: Where to serve `/livez`, `/readyz` and `/metrics`; nowhere without a port.
    """

    database: str
    broker: str | Transport | None = None
    table: OutboxTable = field(default_factory=OutboxTable)
    name: str = "relay"
    poll_s: float = 1.0
    drain_s: float = 20.0
    health_host: str = "127.0.0.1"
    health_port: int | None = None


class Relay:
    """One relay of one outbox."""

    def __init__(self, settings: RelaySettings) -> None:
        self.settings = settings
        self.leads = False
        self.health_port: int | None = None
        self._rows = open_rows(settings.database, settings.table)
        self._trouble: str | None = "not started"
        self._stuck: dict[str, tuple[float, float]] = {}  # topics: not before this moment, and after what pause
        self._beat_s = monotonic()
        self._looked_s = -LOOK_S
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._transport: Transport
        self._instrument: Instrument
        self._observing: Observing

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        """Relay until the block ends, then finish what is being sent.

        Raises:
            ConfigurationError, StoreError, TransportError: It cannot begin; says why.
        """
        settings = self.settings
        async with AsyncExitStack() as stack:
            transport = settings.broker or os.environ.get("CHOREO_BROKER")
            if transport is None:
                raise ConfigurationError("there is no broker to relay to: give --broker, or set CHOREO_BROKER")
            if isinstance(transport, str):
                transport = open_transport(transport)
                await transport.open()
                stack.push_async_callback(transport.close)
            self._observing = observing = Observing(
                settings.name,
                transport,
                trace_mode="parent",
                split_after_s=SPLIT_AFTER_S,
                share_tracer=False,
                health_host=settings.health_host,
                health_port=settings.health_port,
            )
            stack.push_async_callback(asyncio.to_thread, observing.close)
            self._instrument = observing.instrument(settings.name, alone=True)
            stack.push_async_callback(asyncio.to_thread, self._instrument.close)
            self._transport = observing.transport(settings.name)
            stack.push_async_callback(self._rows.close)
            await self._rows.open()
            self._trouble = None
            self.health_port = await stack.enter_async_context(observing.serving(self.not_alive, self.not_ready))
            self._task = asyncio.create_task(self._run())
            stack.push_async_callback(self._stop, self._task)
            yield self

    async def failed(self) -> None:
        """Wait until the relay dies of a bug, and raise what it died of."""
        assert self._task is not None
        await asyncio.shield(self._task)

    def not_alive(self) -> list[str]:
        """Why the process should be ended and started again."""
        if self._task is not None and self._task.done() and not self._stopping.is_set():
            return ["a bug stopped it"]
        silent_s = monotonic() - self._beat_s
        return [f"its loop has been silent for {silent_s:.0f} s"] if silent_s > SILENT_S_MAX else []

    def not_ready(self) -> list[str]:
        """Why it relays nothing; one that stands by is ready."""
        if self._stopping.is_set():
            return ["draining"]
        return [] if self._trouble is None else [self._trouble]

    async def _stop(self, task: "asyncio.Task[None]") -> None:
        self._stopping.set()
        await asyncio.wait({task}, timeout=self.settings.drain_s)
        if not task.done():
            log.warning("stopped before everything was acknowledged: the rest stays in the outbox")
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # logged already

    async def _run(self) -> None:
        try:
            await self._loop()
        except Exception as error:
            log.error(
                "the relay was stopped by a bug; nothing is sent until it is started again", exc_info=unsaid(error)
            )
            raise

    async def _loop(self) -> None:
        pause_s = RETRY_S
        while not self._stopping.is_set():
            self._beat_s = monotonic()
            try:
                if self._trouble is not None:
                    await self._rows.open()
                    log.info("%s is back", self._rows.shown)
                    self._trouble = None
                await self._round()
                pause_s = RETRY_S
            except (StoreError, ConfigurationError) as error:
                if self._trouble is None:
                    log.warning("%s; tried again until it works", error)
                self._trouble = str(error)
                self._lead(False)
                await self._rows.close()
                await self._pause(pause_s)
                pause_s = min(2 * pause_s, RETRY_S_MAX)

    async def _round(self) -> None:
        """Send what is there, or wait for it."""
        leads = await self._rows.lead()
        self._lead(leads)
        if not leads:
            await self._pause(STANDBY_S)
            return
        if self._observing.counts and monotonic() - self._looked_s >= LOOK_S:
            self._observing.tell_backlog(self.settings.name, await self._rows.backlog())
            self._looked_s = monotonic()
        now_s = monotonic()
        without = [topic for topic, (until_s, _) in self._stuck.items() if until_s > now_s]
        rows = await self._rows.take(rows_max=BATCH_ROWS, bytes_max=BATCH_BYTES, without=without)
        if not rows:
            await self._unless_stopping(self._rows.wait(self.settings.poll_s))
            return
        by_topic: dict[str, list[OutboxRow]] = defaultdict(list)
        for row in rows:
            by_topic[row.topic].append(row)
        sent = await asyncio.gather(*(self._send(topic, each) for topic, each in by_topic.items()))
        if positions := [position for each in sent for position in each]:
            await self._rows.delete(positions)

    async def _send(self, topic: str, rows: Sequence[OutboxRow]) -> list[int]:
        """Send a topic's rows, in order; returns the positions of those that are on the log: all or none.

        A topic that fails is left alone for a while, with all its keys, so that the others go on.
        """
        records, ends = [], []
        error: BaseException | None = None
        try:
            for row in rows:
                envelope, end = self._instrument.publish(topic, row.envelope(), row.key)
                ends.append(end)
                records.append(ProducerRecord(topic, row.key, row.value, cloudevents.write(envelope)))
            await self._transport.send(records)
        except ChoreoError as failure:
            error = failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            for end in ends:
                end(error)
        if error is None:
            self._stuck.pop(topic, None)
            return [row.position for row in rows]
        _, before_s = self._stuck.get(topic, (0.0, RETRY_S / 2))
        pause_s = min(2 * before_s, RETRY_S_MAX)
        self._stuck[topic] = monotonic() + pause_s, pause_s
        log.warning(
            "nothing of %s is sent, from position %d on, and it is tried again in %g s: %s",
            topic,
            rows[0].position,
            pause_s,
            error,
        )
        return []

    def _lead(self, leads: bool) -> None:
        if leads and not self.leads:
            log.info("relaying %s", self._rows.shown)
        if not leads and self.leads:
            self._observing.tell_backlog(self.settings.name, None)
        self.leads = leads

    async def _pause(self, delay_s: float) -> None:
        await self._unless_stopping(asyncio.sleep(delay_s))

    async def _unless_stopping(self, wait: Coroutine[Any, Any, None]) -> None:
        """Wait, but no longer when it is to stop."""
        waiting, stopping = asyncio.ensure_future(wait), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({waiting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                waiting.result()
        finally:
            for each in (waiting, stopping):
                each.cancel()
            await asyncio.gather(waiting, stopping, return_exceptions=True)
