"""What process managers, sagas and joins promise, and the flows of handlers/ with them."""

from collections.abc import Collection, Iterator
from typing import Any

import pytest

from choreo.core import messages as m
from choreo.core import process as core
from choreo.core.definition import Definition
from choreo.core.engine import Engine
from choreo.core.units import Unit
from choreo.errors import UnknownVersion
from choreo.instances import Timer
from choreo.process.interpreting import Process, Turn
from choreo.process.versions import Version
from choreo.runtime.timers import TimerPoller
from choreo.stores.sqlite import instances
from handlers.ci_pipeline.events import DeployCommit
from tests.simulation.mutants.mutant import Mutant

EARLY_MS = 500


def timers_are_early(patch: pytest.MonkeyPatch) -> None:
    """Half a second."""
    claim_due, next_wake_ms = instances.claim_due, instances.next_wake_ms

    def soon(db: Any, processes: Collection[str], limit: int, now_ms: int, until_ms: int) -> Any:
        return claim_due(db, processes, limit, now_ms + EARLY_MS, until_ms)

    def sooner(db: Any, processes: Collection[str]) -> int | None:
        found = next_wake_ms(db, processes)
        return None if found is None else found - EARLY_MS

    patch.setattr(instances, "claim_due", soon)
    patch.setattr(instances, "next_wake_ms", sooner)


def timers_are_noted_first(patch: pytest.MonkeyPatch) -> None:
    """One whose record is lost on the way is never heard of again."""

    async def noted_first(self: TimerPoller[Timer]) -> float:
        timers, next_s = await self._store.due(self._processes, limit=500, claim_s=5.0)
        await self._store.due_sent(timers, again_s=1e9)
        if timers:
            await self._transport.send([self._record(timer) for timer in timers])
        return next_s

    patch.setattr(TimerPoller, "send_due", noted_first)


def repeating_timers_fire_once(patch: pytest.MonkeyPatch) -> None:
    """Nobody is reminded a second time."""
    real = core.on_timer

    def once(definition: Definition, state: str | None, timer: str, number: int) -> Iterator[core.Step]:
        for step in real(definition, state, timer, number):
            yield core.Spent() if isinstance(step, core.Next) else step

    patch.setattr(core, "on_timer", once)


def timers_outlive_their_state(patch: pytest.MonkeyPatch) -> None:
    """None is cancelled when its state is left."""
    real = instances.SqliteInstances.cancel_timers

    def some(self: Any, process: str, key: str, names: Collection[str] | None = None) -> None:
        if names is not None:
            real(self, process, key, names)

    patch.setattr(instances.SqliteInstances, "cancel_timers", some)


def unknown_versions_are_taken_for_the_newest(patch: pytest.MonkeyPatch) -> None:
    """A build that is rolled back goes on with what the newer one began."""
    real = Process.version

    def version(self: Process, number: int) -> Version:
        try:
            return real(self, number)
        except UnknownVersion:
            return self.newest

    patch.setattr(Process, "version", version)


def instances_move_with_their_next_event(patch: pytest.MonkeyPatch) -> None:
    """To the newest version, by its own `migrate`, and without being asked."""
    real = Turn._load

    def load(self: Turn, key: str) -> bool:
        found = real(self, key)
        move = self._process.newest.made.moves().get(self._version.made.process_version)
        if move is not None and self._self is not None and self._old is not None and not self._old.ended:
            self._self, to = move(self._self, self._state)
            self._version, self._state = self._process.newest, to.name
        return found

    patch.setattr(Turn, "_load", load)


def a_step_that_was_refused_is_undone(patch: pytest.MonkeyPatch) -> None:
    """The saga releases what was never reserved, as the shelf does not mind."""
    real = core.on_event

    def on_event(definition: Definition, state: str | None, event: str, guard: core.Guard) -> Iterator[core.Step]:
        for step in real(definition, state, event, guard):
            if event == "stock.rejected" and isinstance(step, core.Enter):
                yield from core._entered(definition.state("release-stock"))
                return
            yield step

    patch.setattr(core, "on_event", on_event)


def an_answer_is_dropped(patch: pytest.MonkeyPatch) -> None:
    """The join hears of the news, and forgets them."""
    real = core.on_event

    def on_event(definition: Definition, state: str | None, event: str, guard: core.Guard) -> Iterator[core.Step]:
        if event == "lead.news-found" and state == "waiting":
            return iter([core.Passed("ignored")])
        return real(definition, state, event, guard)

    patch.setattr(core, "on_event", on_event)


def guards_hold(patch: pytest.MonkeyPatch, *, always: bool = True) -> None:
    """Nobody asks them."""
    real = core.on_event
    patch.setattr(
        core, "on_event", lambda definition, state, event, _: real(definition, state, event, lambda name: always)
    )


def guards_never_hold(patch: pytest.MonkeyPatch) -> None:
    """Nor does anybody hear a yes."""
    guards_hold(patch, always=False)


def deploys_have_a_lane_a_commit(patch: pytest.MonkeyPatch) -> None:
    """And no order between those of one repository."""
    patch.setattr(DeployCommit, "record_key", lambda self: self.sha.encode())


def attempts_are_counted_from_the_middle(patch: pytest.MonkeyPatch) -> None:
    """The engine believes that it has tried an event once less than it has."""
    real, miscounted = Engine._raised, dict[int, Unit]()

    def raised(self: Engine, message: m.Raised) -> None:
        unit = message.unit
        if not unit.transacts and unit.attempts - unit.attempts_before == 2 and id(unit) not in miscounted:
            miscounted[id(unit)] = unit
            unit.attempts -= 1
        real(self, message)

    patch.setattr(Engine, "_raised", raised)


PROCESSES = (
    Mutant("early timers", "a timer fires not before it is due", "approval", "outbox", timers_are_early),
    Mutant(
        "timers noted before they are sent",
        "a timer is sent until it has fired",
        "approval",
        "outbox",
        timers_are_noted_first,
    ),
    Mutant(
        "repeating timers fire once",
        "a timer that repeats is set again",
        "approval",
        "outbox",
        repeating_timers_fire_once,
    ),
    Mutant(
        "timers outlive their state",
        "a timer is gone with its state",
        "approval",
        "outbox",
        timers_outlive_their_state,
    ),
    Mutant(
        "rolled back over new instances",
        "what a build does not know waits",
        "approval",
        "outbox",
        unknown_versions_are_taken_for_the_newest,
    ),
    Mutant(
        "versions crossed",
        "an instance ends under the version it began under",
        "approval",
        "outbox",
        instances_move_with_their_next_event,
    ),
    Mutant("no second look", "guards decide", "approval", "outbox", guards_never_hold),
    Mutant(
        "undone though never done",
        "a saga undoes what was done",
        "order_saga",
        "outbox",
        a_step_that_was_refused_is_undone,
    ),
    Mutant(
        "an answer is dropped",
        "a join is partial only without an answer",
        "enrichment",
        "outbox",
        an_answer_is_dropped,
    ),
    Mutant(
        "miscounted attempts",
        "an event is given up after so many attempts",
        "enrichment",
        "outbox",
        attempts_are_counted_from_the_middle,
    ),
    Mutant("asked too early", "a decision waits for all steps", "ci_pipeline", "outbox", guards_hold),
    Mutant(
        "deploys overtake each other",
        "one lane a repository",
        "ci_pipeline",
        "outbox",
        deploys_have_a_lane_a_commit,
    ),
)
