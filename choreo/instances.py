"""What a process needs of a store: its instances and timers, in the transaction their events' keys commit in.

A store that has them offers `INSTANCES` among its `transaction_types`, and is a `TimerStore`.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from choreo.errors import Reject, StoreError

INSTANCES = "choreo.instances.Instances"
"""Of `transaction_types` and `BoundHandler.transaction`: the unit's transaction is given as `Instances`."""
KEY_BYTES_MAX = 1024
"""Of an instance's key, in UTF-8; it is looked up by indexes, whose entries are bounded."""


class Instance(NamedTuple):
    """One instance of a process, as it is stored.

    `process` is the process manager's name, `key` the instance's. `version` is that of the definition it runs under.
    `state` is a state's name; `ended`: it is a final one. `data`: its fields, a JSON object, UTF-8. `deferred`:
    events that wait for another state, a JSON array, UTF-8. `revision` counts commits: 0 was never stored.
    `updated_ms`: when it was stored, on the store's clock; `save` sets it.
    """

    process: str
    key: str
    version: int
    state: str
    data: bytes
    ended: bool = False
    deferred: bytes = b"[]"
    correlation_id: str = ""
    revision: int = 0
    updated_ms: int = 0


class Timer(NamedTuple):
    """A timer of an instance, at most one of a name.

    `number` counts firings, from 1. `token` is new each time it is set anew, so that a firing of a former one is
    known by it. `due_ms`: on the store's clock. `traceparent`: of the event that set it, empty if it had none.
    """

    process: str
    key: str
    name: str
    token: str
    due_ms: int
    number: int = 1
    correlation_id: str = ""
    traceparent: str = ""


class Intervention(NamedTuple):
    """What somebody did to an instance by hand: `what` was done, by `who`, and `why`.

    `correlation_id`: of the instance's flow. `at_ms`: when, on the store's clock, which sets it.
    """

    process: str
    key: str
    what: str
    who: str
    why: str
    correlation_id: str = ""
    at_ms: int = 0


class Count(NamedTuple):
    """The `number` of instances of one version in one state; with `timer`, of those that have one of this name.

    `keys`: the first COUNT_KEYS_MAX of them.
    """

    version: int
    state: str
    ended: bool
    timer: str | None
    number: int
    keys: tuple[str, ...]


COUNT_KEYS_MAX = 3
"""Of a `Count`: enough to look at."""


class Instances(Protocol):
    """Instances and timers within one unit's transaction: all of it is committed with the unit's key, or nothing."""

    @property
    def now_ms(self) -> int:
        """The store's clock: what timers are due by."""

    def load(self, process: str, key: str) -> Instance | None:
        """The instance; until the commit nobody else loads it.

        Raises:
            Reject: The key is longer than KEY_BYTES_MAX: no instance can have it.
        """

    def save(self, instance: Instance) -> None:
        """Store it. `revision` is the one it was loaded with, 0 if it is new.

        Raises:
            StoreError: It was stored by somebody else meanwhile; the unit is tried again. Perhaps not here, but by
                a later call or when the handler has returned.
        """

    def timers(self, process: str, key: str) -> Sequence[Timer]:
        """Its timers, by name."""

    def set_timer(self, timer: Timer) -> None:
        """Set it, instead of the one of its name if there is one."""

    def cancel_timers(self, process: str, key: str, names: Collection[str] | None = None) -> None:
        """Those of these names, or all."""


def check_key(process: str, key: str) -> None:
    """Whether an instance can have it.

    Raises:
        Reject: It is longer than KEY_BYTES_MAX.
    """
    if len(key) * 4 > KEY_BYTES_MAX and (size := len(key.encode("utf-8", "surrogatepass"))) > KEY_BYTES_MAX:
        raise Reject(f"the key of an instance of {process} has {size} bytes, and may have {KEY_BYTES_MAX}")


def overtaken(instance: Instance) -> StoreError:
    """What `save` raises."""
    return StoreError(
        f"an instance of {instance.process} was stored by somebody else since it was loaded at revision "
        f"{instance.revision}; its event is tried again"
    )


class TimerStore(Protocol):
    """Finds timers that are due, for whoever sends what wakes their instances.

    Attributes:
        on_timer: Called on the event loop after each commit of this process that set timers, with the seconds until
            the first of them is due: whoever asks `due` can sleep until then.
    """

    on_timer: list[Callable[[float], None]]

    async def due(self, processes: Collection[str], *, limit: int, claim_s: float) -> tuple[Sequence[Timer], float]:
        """Timers that are due and to be sent, the oldest first, at most `limit`; found by nobody else for `claim_s`.

        Returns them, and in how many seconds the next one is to be sent: infinite if there is none, 0 if there were
        more.
        """

    async def due_sent(self, timers: Sequence[Timer], *, again_s: float) -> None:
        """What wakes their instances is on the log.

        One that is still set `again_s` later, or when it has been due for twice as long if that is later, is found
        again. A timer that was set anew meanwhile is not touched.
        """

    async def purge_ended(self, process: str, group: str, topics: Sequence[str], retention_ms: int) -> int:
        """Delete instances that ended more than `retention_ms` before the group's progress; returns how many.

        The progress is that of `IdempotencyStore.purge`. What comes for an instance and was appended within the
        retention of its end still finds it, however long the group was down. One that has a timer left stays. One
        call takes a bounded number: call again while it returns any.
        """

    async def overdue(self, processes: Collection[str]) -> int:
        """How many timers are to be sent now, found or not; for metrics."""

    async def timers_of(self, correlation_id: str) -> Sequence[Timer]:
        """Timers of a flow, the next one first, some hundred at most; for looking: every timer is read."""

    async def instances(
        self, process: str, *, state: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Instance]:
        """Instances in order of their keys, above `after`; for looking, outside of any transaction."""

    async def instance(self, process: str, key: str) -> tuple[Instance, Sequence[Timer]] | None:
        """One, with its timers; for looking."""


class OperatedStore(TimerStore, Protocol):
    """Lets instances be counted, and changed by hand beside the services that run."""

    async def census(self, process: str) -> Sequence[Count]:
        """How many instances there are by version and state, and how many of those have which timer."""

    async def intervene(self, change: Callable[[Instances], Sequence[Intervention]]) -> Sequence[Intervention]:
        """Call `change` in a transaction of its own; what it returns is kept in the same, and returned with its time.

        The rows that it loads are locked as a handler locks them.

        Raises:
            StoreError: It failed, or somebody else had an instance for too long; nothing is changed.
        """

    async def interventions(
        self, process: str = "", key: str = "", *, correlation_id: str = "", since_ms: int | None = None
    ) -> Sequence[Intervention]:
        """What was done by hand, oldest first.

        To one instance; or with `correlation_id` to those of one flow; or with `since_ms` to any, from then on.
        """
