"""`Saga`: a short sequence of steps with compensation. It reduces to a process manager, and runs as one."""

import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import reduce, wraps
from operator import or_
from typing import Any, TypeVar

from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.process.declaring import RETENTION, ProcessManager
from choreo.process.fields import check_fields
from choreo.process.states import Declared, check_events

Make = Callable[[Mapping[str, Any]], Event]
"""Makes a command of the data of the events so far, by field; where they have one name the last one counts."""
Move = Callable[[dict[str, Any], str], tuple[Mapping[str, Any], str]]
"""Given the data of the events so far and the state's name, as an older version has them, returns the new ones."""

_Event = TypeVar("_Event", bound=Event)


@dataclass(frozen=True)
class Step:
    """A command, and the events that answer it.

    Args:
        command: Sent when it is this step's turn.
        ok: It is done; the next step follows.
        failed: It is not done and will not be: what the steps before it did is undone.
        undo: Command that undoes it, once a later step has failed.
        undone: The event that says so. Until it comes the command is sent again: a compensation never gets lost.
        timeout: Without an answer for so long it counts as failed, and is undone, too, since it may have been done.
            `undo` then needs no field that only `ok` has. None: the saga waits in this step for as long as it takes,
            also where the command has become a dead letter, until that is replayed.
        make: Makes the command, if its fields are not found by name in the events so far.

    Raises:
        DeclarationError: `undo` without `undone`, or the other way round; a timeout of a step nobody can undo.
    """

    command: type[Event]
    ok: type[Event]
    failed: type[Event] | tuple[type[Event], ...] = ()
    undo: type[Event] | None = None
    undone: type[Event] | None = None
    timeout: timedelta | None = None
    make: Make | None = None

    def __post_init__(self) -> None:
        """Check what belongs together."""
        name = getattr(self.command, "__name__", repr(self.command))
        check_events(f"Step({name})", [self.command, self.ok, *self.failures])
        if (self.undo is None) != (self.undone is None):
            raise DeclarationError(
                f"Step({name}): undo= is the command that undoes it, undone= the event that says that it is undone; "
                "give both, or a compensation that fails would not be noticed"
            )
        if self.timeout is not None and self.undo is None:
            raise DeclarationError(f"Step({name}): what may have been done in time has to be undone: give undo=")

    @property
    def failures(self) -> tuple[type[Event], ...]:
        """As a tuple."""
        return self.failed if isinstance(self.failed, tuple) else (self.failed,)


class SagaInstance(ProcessManager, version=1, by="?", name="saga"):
    """What every saga keeps of an instance: the fields of its events so far, as JSON has them."""

    process_enters_moved = True
    data: dict[str, Any]
    resent: int = 0


class Saga:
    """Steps in order, each a command and its answer; when one fails, those before it are undone, last first.

    Args:
        name: Of the process; part of keys and of what is stored.
        starts: The event that begins it.
        by: Field of every event of it that names the instance.
        steps: At least one.
        completed: The event it ends with when all is done, made of its data, if anybody is to know.
        compensated: The same, when all was undone.
        version: Raised when steps change while instances are in flight.
        previous: Sagas of the same name and older versions, whose instances may be in flight.
        retention: How long an instance is kept when it has ended, in log time; None: for ever.
        resend: How often an undo command is sent again until its answer comes.
        stuck_after: After so long it is in a state whose name begins with `stuck-`, and goes on trying.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    def __init__(
        self,
        name: str,
        *,
        starts: type[Event],
        by: str,
        steps: Sequence[Step],
        completed: type[Event] | None = None,
        compensated: type[Event] | None = None,
        version: int = 1,
        previous: "Saga | tuple[Saga, ...]" = (),
        retention: timedelta | None = RETENTION,
        resend: timedelta = timedelta(minutes=1),
        stuck_after: timedelta = timedelta(hours=1),
    ) -> None:
        if not steps:
            raise DeclarationError(f"Saga({name!r}): give it at least one Step")
        self.name = name
        self._steps, self._starts = tuple(steps), starts
        self._resend, self._stuck_after = resend, stuck_after
        older = previous if isinstance(previous, tuple) else (previous,)
        options = {"version": version, "by": by, "name": name, "unexpected": "ignore"}
        options |= {"previous": tuple(each.manager for each in older), "retention": retention}
        self.manager: type[SagaInstance] = types.new_class(re.sub(r"\W", "_", name.title()), (SagaInstance,), options)
        made = self.manager
        self._completed = self._end("completed", completed)
        self._commands = [made.state(_slug(step.command)) for step in self._steps]
        self._undoing = [
            made.state(_slug(step.undo)) if step.undo and self._may_fail(number) else None
            for number, step in enumerate(self._steps)
        ]
        self._compensated = self._end("compensated", compensated) if self._may_fail(-1) else self._completed
        for number in range(len(self._steps)):
            self._forward(number)
            self._backward(number)
        made.starts(starts, to=self._commands[0])(self._begin())
        check_fields(name, starts, steps, completed, compensated)

    def migrate(self, *, from_version: int) -> Callable[[Move], Move]:
        """How an instance of an older version becomes one of this: called by `choreo instances migrate`.

            @checkout.migrate(from_version=1)
            def from_v1(data: dict[str, Any], state: str) -> tuple[dict[str, Any], str]:
                return {**data, "currency": "EUR"}, state

        The function is given the fields of the events so far and the name of the state, and returns both as this
        version has them. A state is named after the command that is sent in it: `release-stock`. Where the state is
        another than before, its command is sent. It raises `Reject` of an instance that has to stay as it is.
        """
        register, made = self.manager.migrate(from_version=from_version), self.manager

        def registered(function: Move) -> Move:
            @wraps(function)
            def moved(old: SagaInstance, state: str) -> tuple[SagaInstance, Declared | None]:
                data, name = function(old.data, state)
                return made(data=dict(data), resent=old.resent), made.named(name)

            plain = inspect.isfunction(function) and not inspect.iscoroutinefunction(function)
            register(moved if plain else function)  # the latter is refused
            return function

        return registered

    # ---- states

    def _end(self, name: str, event: type[Event] | None) -> Declared:
        state = self.manager.final(name)
        if event is not None:
            check_events(f"Saga({self.name!r})", [event])
            state.entry(_function(f"say_{name}", lambda saga: _made(event, saga), self._self, returns=event))
        return state

    def _may_fail(self, number: int) -> bool:
        """Whether what the step of that number did may have to be undone."""
        later = self._steps[number + 1 :]
        itself = number >= 0 and self._steps[number].timeout is not None
        return itself or any(step.failures or step.timeout is not None for step in later)

    @property
    def _self(self) -> dict[str, Any]:
        return {"saga": self.manager}

    def _begin(self) -> Callable[..., Any]:
        manager = self.manager
        return _function("begin", lambda event: manager(data=_data(event)), {"event": self._starts}, returns=manager)

    def _forward(self, number: int) -> None:
        step, state = self._steps[number], self._commands[number]
        last = number + 1 == len(self._steps)
        slug = _slug(step.command)
        make = step.make or step.command.model_validate
        state.entry(_function(f"send_{slug}", lambda saga: make(saga.data), self._self, returns=step.command))
        take = self._taking(f"take_{_slug(step.ok)}", (step.ok,))
        state.on(step.ok, to=self._completed if last else self._commands[number + 1])(take)
        if step.failures:
            fail = self._taking(f"fail_{slug}", step.failures)
            state.on(*step.failures, to=self._before(number))(fail)
        if step.timeout is not None:
            state.after(step.timeout, to=self._undoing[number])(
                _function(f"time_out_{slug}", lambda saga: None, self._self, returns=None)
            )

    def _backward(self, number: int) -> None:
        step, state = self._steps[number], self._undoing[number]
        if state is None or step.undo is None or step.undone is None:
            return
        undo, slug = step.undo, _slug(step.undo)
        stuck = self.manager.state(f"stuck-{slug}")
        take = self._taking(f"take_{_slug(step.undone)}", (step.undone,))
        for each, pause in ((state, self._resend), (stuck, 10 * self._resend)):
            each.on(step.undone, to=self._before(number))(take)
            each.every(pause)(
                _function(f"resend_{slug}_{_slug(each)}", lambda saga: _again(undo, saga), self._self, returns=undo)
            )
        state.entry(_function(f"send_{slug}", lambda saga: _made(undo, saga), self._self, returns=undo))
        state.after(self._stuck_after, to=stuck)(
            _function(f"give_warning_{slug}", lambda saga: None, self._self, returns=None)
        )

    def _before(self, number: int) -> Declared:
        """Where a saga goes when the step of that number is undone, or was never done."""
        found = [state for state in self._undoing[:number] if state is not None]
        return found[-1] if found else self._compensated

    def _taking(self, name: str, events: Sequence[type[Event]]) -> Callable[..., Any]:
        def take(saga: SagaInstance, event: Event) -> None:
            saga.data = {**saga.data, **_data(event)}

        return _function(name, take, {**self._self, "event": reduce(or_, events)}, returns=None)


def _function(
    name: str, function: Callable[..., Any], parameters: Mapping[str, Any], *, returns: Any
) -> Callable[..., Any]:
    """A function that says of itself what a declaration has to know."""
    names = list(parameters)
    if len(names) == 1:

        def one(given: Any) -> Any:
            return function(given)

        made: Callable[..., Any] = one
    else:

        def two(given: Any, event: Any) -> Any:
            return function(given, event)

        made = two
    made.__name__ = made.__qualname__ = name
    made.__annotations__ = {"return": returns}
    return made


def _data(event: Event) -> dict[str, Any]:
    return event.model_dump(mode="json")


def _made(command: type[_Event], saga: SagaInstance) -> _Event:
    return command.model_validate(saga.data)


def _again(command: type[_Event], saga: SagaInstance) -> _Event:
    saga.resent += 1
    return _made(command, saga)


def _slug(what: type[Event] | Declared | None) -> str:
    name = what.name if isinstance(what, Declared) else what.__name__ if what is not None else ""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
