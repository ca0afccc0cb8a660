"""The stores that `choreo trace` asks: who handled what of a flow, and which idempotency keys they have."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from choreo.cli.console import embedded_path
from choreo.errors import StoreError
from choreo.flow.drawing import moment, printable
from choreo.flow.timeline import TimerWaiting
from choreo.flow.waiting import Unanswered
from choreo.instances import Intervention, Timer
from choreo.opening import open_store
from choreo.runtime.clock import SystemClock
from choreo.sqlite.database import Database
from choreo.stores.sqlite import SqliteStore

DIGESTS_ONLY = (
    "the store keeps digests of keys: it tells that something was handled, not by which attempt or how long"
)
CHANGELOG = "a changelog is read back whole by its service, and by nobody else"
Rows = list[Mapping[str, Any]]


class Asked(NamedTuple):
    """An opened store that can tell of these services; `of_flows`: it knows which keys are of a flow."""

    kind: str
    store: Any
    services: Sequence[str]
    of_flows: bool


@asynccontextmanager
async def opened(
    broker: str | None, store: str | None, services: Sequence[str], remarks: list[str]
) -> AsyncIterator[list[Asked]]:
    """The stores that can tell, while they are needed; to `remarks` is added why another one cannot.

    Args:
        broker: An embedded one keeps a store in its own file, unless another one is named.
        store: As `--store` takes it.
        services: Declared ones, whose store it is.
    """
    async with AsyncExitStack() as stack:
        stores = _stores(broker, store, services, remarks)
        for each in stores:
            await each.store.open()
            stack.push_async_callback(each.store.close)
        yield stores


def _stores(broker: str | None, url: str | None, services: Sequence[str], remarks: list[str]) -> list[Asked]:
    stores: list[Asked] = []
    path = embedded_path(broker or "")
    if path is not None and url is None:
        stores.append(Asked("sqlite", _sqlite(path), services, True))
    kind, _, name = (url or "").partition(":")
    if url == "changelog":
        remarks.append(f"who handled what is not told by the store: {CHANGELOG}")
    elif kind == "sqlite" and name:
        by_file: dict[Path, list[str]] = {}
        for service in services:
            by_file.setdefault(Path(name.replace("{service}", service)), []).append(service)
        if not by_file:
            by_file[Path(name)] = []
        for file, its in by_file.items():
            if file.exists():
                stores.append(Asked("sqlite", _sqlite(file), its, True))
            else:
                remarks.append(f"there is no {file} here: is the store of {', '.join(its)} elsewhere?")
    elif url is not None:
        store = open_store(url, "", "", None, clock=SystemClock())
        stores.append(Asked(store.name, store, services, hasattr(store, "history")))
        if not hasattr(store, "history"):
            remarks.append(DIGESTS_ONLY)
    return stores


async def history(stores: Sequence[Asked], flows: Sequence[str]) -> dict[str, Rows]:
    """What the stores tell of each flow."""
    rows: dict[str, Rows] = {flow: [] for flow in flows}
    for each in stores:
        for flow in flows if each.of_flows else ():
            rows[flow] += await each.store.history(flow)
    return rows


async def by_hand(stores: Sequence[Asked], flows: Sequence[str]) -> list[str]:
    """What an operator did to instances of the flows, in words."""
    done = [each for flow in flows for each in await interventions(stores, correlation_id=flow)]
    return [
        printable(f"by hand, {moment(each.at_ms)}, {each.who}: {each.process} {each.key}: {each.what} ({each.why})")
        for each in sorted(done, key=lambda each: each.at_ms)
    ]


async def interventions(stores: Sequence[Asked], **which: Any) -> list[Intervention]:
    """What an operator did to instances; a store without those tables has nothing to tell."""
    done: list[Intervention] = []
    for each in stores:
        if hasattr(each.store, "interventions") and not await each.store.plan():
            done += await each.store.interventions(**which)
    return done


async def timers(stores: Sequence[Asked], flow: str, now_ms: int) -> list[TimerWaiting]:
    """Timers of process instances that are set in a flow, the next one first."""
    found: list[Timer] = []
    for each in stores:
        if each.of_flows:
            with suppress(StoreError):  # of an older choreo, whose schema has none
                found += await each.store.timers_of(flow)
    return [
        TimerWaiting(timer.process, timer.key, timer.name, (timer.due_ms - now_ms) / 1000)
        for timer in sorted(found, key=lambda timer: timer.due_ms)
    ]


async def known_keys(stores: Sequence[Asked], asked: Iterable[Unanswered]) -> dict[bytes, bool]:
    """Which idempotency keys the stores have of what nobody has told anything of."""
    by_group: dict[str, list[bytes]] = {}
    for group, digest in asked:
        by_group.setdefault(group, []).append(digest)
    keys: dict[bytes, bool] = {}
    for each in stores:
        for group, digests in by_group.items():
            keys |= await each.store.keys(group, digests)
    return keys


def _sqlite(path: Path) -> SqliteStore:
    return SqliteStore(Database(str(path)), SystemClock(), with_log=False)
