"""What a process needs of a store: its instances and timers, in the transaction their events' keys commit in.

A store that has them offers `INSTANCES` among its `transaction_types`, and is a `TimerStore`.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

INSTANCES = "choreo.instances.Instances"
"""Of `transaction_types` and `BoundHandler.transaction`: the unit's transaction is given as `Instances`."""


class Instance(NamedTuple):
    """One instance of a process, as it is stored.

    `process` is the process manager's name, `key` the instance's. `version` is that of the definition it runs under.
    `state` is a state's name; `ended`: it is a final one. `data`: its fields, a JSON object, UTF-8. `deferred`: events
    that wait for another state, a JSON array, UTF-8. `revision` counts commits: 0 was never stored.
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

    `number` counts firings, from 1. `token` is new each time it is set anew, so that a firing of a former one is known
    by it. `due_ms`: on the store's clock. `traceparent`: of the event that set it, empty if it had none.
    """

    process: str
    key: str
    name: str
    token: str
    due_ms: int
    number: int = 1
    correlation_id: str = ""
    traceparent: str = ""


class Instances(Protocol):
    """Instances and timers within one unit's transaction: all of it is committed with the unit's key, or nothing."""

    @property
    def now_ms(self) -> int:
        """The store's clock: what timers are due by."""

    def load(self, process: str, key: str) -> Instance | None:
        """The instance; until the commit nobody else loads it."""

    def save(self, instance: Instance) -> None:
        """Store it. `revision` is the one it was loaded with, 0 if it is new.

        Raises:
            StoreError: It was stored by somebody else meanwhile; the unit is tried again.
        """

    def timers(self, process: str, key: str) -> Sequence[Timer]:
        """Its timers, by name."""

    def set_timer(self, timer: Timer) -> None:
        """Set it, instead of the one of its name if there is one."""

    def cancel_timers(self, process: str, key: str, names: Collection[str] | None = None) -> None:
        """Those of these names, or all."""


class TimerStore(Protocol):
    """Finds timers that are due, for whoever sends what wakes their instances."""

    async def due(self, processes: Collection[str], *, limit: int, again_s: float) -> tuple[Sequence[Timer], float]:
        """Timers that are due and not sent, or sent more than `again_s` ago, the oldest first, at most `limit`.

        Returns them, and in how many seconds the next one is due: infinite if there is none, 0 if there were more.
        """

    async def due_sent(self, timers: Sequence[Timer]) -> None:
        """What wakes their instances is on the log. A timer that was set anew meanwhile is not touched."""

    async def instances(
        self, process: str, *, state: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[Instance]:
        """Instances in order of their keys, above `after`; for looking, outside of any transaction."""

    async def instance(self, process: str, key: str) -> tuple[Instance, Sequence[Timer]] | None:
        """One, with its timers; for looking."""
