"""Instances of a process from outside: for an application's status page, and for commands; nothing is changed."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import orjson
from pydantic import ValidationError

from choreo.errors import ConfigurationError
from choreo.instances import INSTANCES, Instance, OperatedStore, Timer
from choreo.opening import open_store
from choreo.ports import IdempotencyStore
from choreo.process import ProcessManager
from choreo.process.interpreting import Process
from choreo.runtime.clock import SystemClock
from choreo.sensitive import REDACTED, has_sensitive, redacted
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore


@dataclass(frozen=True, slots=True)
class Status:
    """Where one instance stands.

    Attributes:
        instance: Of the class of its version; None if this build does not have that, or it has not begun.
        state: Empty if it has not begun, and only keeps events for when it does.
        fields: Of the instance, as JSON has them; `***` for what is Sensitive, which `instance` has.
        timers: When each is due, by name; empty in a listing.
        deferred: Types of the events that wait for another state.
    """

    key: str
    version: int
    state: str
    ended: bool
    instance: ProcessManager | None
    fields: dict[str, Any]
    timers: dict[str, datetime]
    deferred: tuple[str, ...]
    correlation_id: str
    updated: datetime


class Looking:
    """Instances of one process; made by `App.instances`.

        found = await app.instances(Approval).get("E-1")
        async with app.instances(Approval, store="postgresql://...") as approvals:   # connected meanwhile
            ...

    Each call reads what is committed. Without a running app and outside of `async with` each call connects anew.
    """

    def __init__(
        self, process: Process, opened: IdempotencyStore | None, *, store: str | None, broker: str | None
    ) -> None:
        self._process = process
        self._opened = cast(OperatedStore | None, opened)
        self._store, self._broker = store, broker
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._opened = await self._stack.enter_async_context(self._connected())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened = None
        await self._stack.aclose()

    async def get(self, key: str) -> Status | None:
        """One instance; None if there is none, and none has begun.

        Raises:
            StoreError: The store does not answer.
        """
        async with self._connected() as store:
            found = await store.instance(self._process.name, key)
        return None if found is None or not found[0].state else status(self._process, *found)

    async def list(self, *, state: str | None = None, after: str = "", limit: int = 100) -> Sequence[Status]:
        """Instances in order of their keys, above `after`, at most `limit`: a page."""
        async with self._connected() as store:
            found = await store.instances(self._process.name, state=state, after=after, limit=limit)
        return [status(self._process, each) for each in found]

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[OperatedStore]:
        if self._opened is not None:
            yield self._opened
        else:
            async with connected(self._process, store=self._store, broker=self._broker) as store:
                yield store


@asynccontextmanager
async def connected(process: Process, *, store: str | None, broker: str | None) -> AsyncIterator[OperatedStore]:
    """The store that a process's instances are in, without the process; see `store_of`."""
    service = process.service
    async with store_of(process.name, service.group, store=store, broker=broker, keeps="instances") as opened:
        assert INSTANCES in opened.transaction_types
        yield cast(OperatedStore, opened)


@asynccontextmanager
async def store_of(
    service: str, group: str, *, store: str | None, broker: str | None, keeps: Literal["instances", "parked"]
) -> AsyncIterator[IdempotencyStore]:
    """The store of a service, without the service; `CHOREO_STORE` and `CHOREO_BROKER` count.

    Raises:
        ConfigurationError: Neither is given, it is not there, does not keep what is wanted, or has an older schema.
    """
    what = "instances" if keeps == "instances" else "parked keys"
    store = store or os.environ.get("CHOREO_STORE")
    broker = broker or os.environ.get("CHOREO_BROKER")
    opened: IdempotencyStore
    if store is not None:
        kind, _, rest = store.partition(":")
        if kind in ("redis", "rediss", "changelog"):
            raise ConfigurationError(f"a store in {kind} keeps no {what}; they are in PostgreSQL or SQLite")
        if kind == "sqlite":
            _require(Path(rest.replace("{service}", service)), "--store")
        opened = open_store(store, service, group, None, clock=SystemClock())
    elif broker is not None and broker.startswith("embedded:") and broker != "embedded::memory:":
        path = broker.removeprefix("embedded:")
        _require(Path(path), "--broker")
        opened = SqliteStore(Database(path), SystemClock(), with_log=True)
    else:
        raise ConfigurationError(
            f"say where the {what} are: store= (--store) postgresql://... or sqlite:PATH, or broker= (--broker) "
            "embedded:PATH; in memory they are seen by the running app alone"
        )
    await opened.open()
    try:
        if await opened.plan():
            raise ConfigurationError(
                f"the schema of the store {opened.name} is not there or older than this choreo: bring it up to date "
                "with `choreo store apply`"
            )
        yield opened
    finally:
        await opened.close()


def status(process: Process, instance: Instance, timers: Sequence[Timer] = ()) -> Status:
    """What is stored, for people."""
    version = process.versions.get(instance.version)
    made: ProcessManager | None = None
    if version is not None and instance.state:
        try:
            made = version.made.model_validate_json(instance.data)
        except ValidationError:
            made = None  # the fields are told as they are
    return Status(
        instance.key,
        instance.version,
        instance.state,
        instance.ended,
        made,
        _fields(process, instance),
        {timer.name: _when(timer.due_ms) for timer in timers},
        tuple(type_ for type_, _ in orjson.loads(instance.deferred)),
        instance.correlation_id,
        _when(instance.updated_ms),
    )


def _fields(process: Process, instance: Instance) -> dict[str, Any]:
    fields: dict[str, Any] = orjson.loads(instance.data)
    version = process.versions.get(instance.version)
    if version is not None:
        found = redacted(version.made, fields)
    else:  # which ones were marked in that version, nobody knows here
        found = REDACTED if any(has_sensitive(each.made) for each in process.versions.values()) else fields
    return found if isinstance(found, dict) else dict.fromkeys(fields, REDACTED)


def _require(path: Path, option: str) -> None:
    if not path.exists():
        raise ConfigurationError(f"there is no file {path}; give the {option} that the services run on")


def _when(time_ms: int) -> datetime:
    return datetime.fromtimestamp(time_ms / 1000, UTC)
