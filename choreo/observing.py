"""What is to be seen of a process that runs services: its traces, its metrics, and whether it is well."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

from choreo.ports import Backlog, IdempotencyStore, Instrument, Transport
from choreo.runtime.levels import Gauge
from choreo.runtime.worker import Worker
from choreo.telemetry import endpoint
from choreo.telemetry.setup import TraceMode, instrument_from_environment, meters_from_environment

Reasons = Callable[[], Sequence[str]]


class Observing:
    """Puts telemetry where it is asked for; where it is not, nothing is in between.

    Args:
        process: `service.name` of its metrics: the only service's name, or the app's.
        transport: Open.
        trace_mode: How `process` spans hang on the `send` spans that caused them.
        split_after_s: Age of a record beyond which its unit begins a trace of its own.
        share_tracer: Spans of handlers' own go with those of their service, by OpenTelemetry's global provider.
        health_host: Where to listen.
        health_port: Where to serve `/livez`, `/readyz` and `/metrics`; None: nowhere; 0: where the system chooses.
    """

    def __init__(
        self,
        process: str,
        transport: Transport,
        *,
        trace_mode: TraceMode,
        split_after_s: float,
        share_tracer: bool,
        health_host: str,
        health_port: int | None,
    ) -> None:
        scraped = health_port is not None and endpoint.scrapable()
        self._meters = meters_from_environment(process, system=transport.system, peer=transport.peer, scraped=scraped)
        self._make = partial(
            instrument_from_environment,
            system=transport.system,
            peer=transport.peer,
            shared=share_tracer,
            mode=trace_mode,
            split_after_s=split_after_s,
            meters=self._meters,
        )
        self._transport = transport
        self._host, self._port = health_host, health_port

    def instrument(self, service: str, *, alone: bool) -> Instrument:
        """The instrument of one service, to be closed; `alone`: the process runs no other."""
        return self._make(service, alone=alone)

    def transport(self, service: str) -> Transport:
        """The transport as one service uses it."""
        return self._transport if self._meters is None else self._meters.transport(service, self._transport)

    def store(self, service: str, store: IdempotencyStore) -> IdempotencyStore:
        """The store of one service."""
        return store if self._meters is None else self._meters.store(service, store)

    @property
    def counts(self) -> bool:
        """Whether somebody wants metrics."""
        return self._meters is not None

    def tell_backlog(self, service: str, backlog: Backlog | None) -> None:
        """What waits in the outbox of a relay; None when another relay leads."""
        if self._meters is not None:
            self._meters.tell_backlog(service, backlog)

    @asynccontextmanager
    async def gauging(self, workers: Mapping[str, Worker]) -> AsyncIterator[None]:
        """Look at how things stand now and then, where somebody wants metrics, until the block ends."""
        meters, tasks = self._meters, []
        if meters is not None:
            for name, worker in workers.items():
                tasks.append(asyncio.create_task(Gauge(worker).loop(partial(meters.tell, name))))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if meters is not None:
                for name in workers:
                    meters.tell(name, None)

    @asynccontextmanager
    async def serving(self, not_alive: Reasons, not_ready: Reasons) -> AsyncIterator[int | None]:
        """Say over HTTP, where asked for, why the process is not alive or not ready; yields the port.

        Raises:
            ConfigurationError: It cannot listen there.
        """
        if self._port is None:
            yield None
            return
        pages = {
            "/livez": lambda: endpoint.verdict(not_alive()),
            "/readyz": lambda: endpoint.verdict(not_ready()),
            "/metrics": endpoint.scrape,
        }
        async with endpoint.serving(self._host, self._port, pages) as port:
            yield port

    def close(self) -> None:
        """Flush the metrics, in bounded time; it blocks."""
        if self._meters is not None:
            self._meters.close()
