"""`ProcessManager`: a persistent state machine as a class. Its fields are an instance's, its states say the rest."""

import inspect
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from choreo.core.definition import CORRELATION, Definition, Unexpected, problems
from choreo.errors import DeclarationError
from choreo.event import Event
from choreo.process.states import Action, Declared, action, check_events, rule
from choreo.sensitive import is_sensitive, refuse_secret_types

_Function = TypeVar("_Function", bound=Callable[..., Any])
RETENTION = timedelta(days=30)
"""Of instances that have ended, unless told otherwise: longer than idempotency keys are kept."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}\Z")


class ProcessManager(BaseModel):
    """One domain process that waits, branches and joins; one class a version of it.

        class Approval(ProcessManager, version=2, by="request_id"):
            manager: str

        waiting, done = Approval.state("waiting"), Approval.final("done")

    Class arguments:
        version: Integer >= 1; raised when states or fields change while instances are in flight.
        by: Field of every event it takes that names the instance; or a mapping of event class to field; or
            `CORRELATION`, of which there is one instance a flow.
        name: The class's own in lower case, with dashes, unless given. Part of keys and of what is stored: keep it.
        unexpected: What becomes of events the current state does not take: "defer", "ignore" or "reject".
        late: Of events that come when the instance has ended: "ignore" or "reject".
        retention: How long an instance is kept when it has ended, in log time; None: for ever. What comes for it
            later is as an event before the start.
        previous: Classes of the same name and older versions, whose instances may be in flight.

    Raises:
        DeclarationError: The message says what to write instead.
    """

    model_config = ConfigDict(validate_assignment=True, extra="ignore")

    process_name: ClassVar[str] = ""
    process_version: ClassVar[int] = 0
    process_previous: ClassVar[tuple[type["ProcessManager"], ...]] = ()
    _by: ClassVar[str | Mapping[type[Event], str]] = ""
    _unexpected: ClassVar[Unexpected] = "defer"
    _late: ClassVar[Literal["ignore", "reject"]] = "ignore"
    process_retention: ClassVar[timedelta | None] = RETENTION
    process_enters_moved: ClassVar[bool] = False
    """Whether an instance that was moved into another state has its `entry` called."""
    _states: ClassVar[dict[str, Declared]] = {}
    _starts: ClassVar[list[tuple[type[Event], Declared, Action]]] = []
    _moves: ClassVar[dict[int, Callable[..., Any]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take choreo's class arguments; pydantic gets the rest."""
        for name in ("version", "by", "name", "unexpected", "late", "retention", "previous"):
            kwargs.pop(name, None)
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        version: int = 0,
        by: str | Mapping[type[Event], str] = "",
        name: str | None = None,
        unexpected: Unexpected = "defer",
        late: Literal["ignore", "reject"] = "ignore",
        retention: timedelta | None = RETENTION,
        previous: "type[ProcessManager] | tuple[type[ProcessManager], ...]" = (),
        **kwargs: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        refuse_secret_types(cls)
        name = name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).lower()
        if not _NAME.match(name):
            raise DeclarationError(
                f'{cls.__name__}: name={name!r}: lower-case letters, digits, ".", "_" and "-", such as "approval"'
            )
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            raise DeclarationError(f"{cls.__name__}: version={version!r} must be a whole number from 1 up")
        if not by:
            raise DeclarationError(
                f'{cls.__name__}: by= names the field of its events that tells instances apart, such as by="order_id"'
            )
        if retention is not None and retention <= timedelta(0):
            raise DeclarationError(
                f"{cls.__name__}: retention={retention} must be longer than nothing, such as timedelta(days=30); "
                "None keeps instances for ever"
            )
        cls.process_name, cls.process_version, cls.process_retention = name, version, retention
        cls.process_previous = previous if isinstance(previous, tuple) else (previous,)
        for other in cls.process_previous:
            if other.process_name != name or other.process_version >= version:
                raise DeclarationError(
                    f"{cls.__name__}: previous={other.__name__} is {other.process_name} v{other.process_version}, "
                    f"and an older version of {name} v{version} is to be there"
                )
        cls._by, cls._unexpected, cls._late = by, unexpected, late
        cls._states, cls._starts, cls._moves = {}, [], {}

    @classmethod
    def state(cls, name: str) -> Declared:
        """Declare a state."""
        return cls._declare(name, is_final=False)

    @classmethod
    def final(cls, name: str) -> Declared:
        """Declare a state in which an instance has ended."""
        return cls._declare(name, is_final=True)

    @classmethod
    def starts(cls, *events: type[Event], to: Declared) -> Callable[[_Function], _Function]:
        """On one of these events, if there is no instance yet: the function makes it from the event."""
        where = f"{cls.__name__}.starts"
        check_events(where, events)

        def register(function: _Function) -> _Function:
            made = action(where, function, "event", emits=False)
            cls._starts += [(event, to, made) for event in events]
            return function

        return register

    @classmethod
    def migrate(cls, *, from_version: int) -> Callable[[_Function], _Function]:
        """How an instance of an older version becomes one of this: called by `choreo instances migrate`.

            @Approval.migrate(from_version=1)
            def from_v1(old: ApprovalV1, state: str) -> tuple[Approval, Declared]:
                return Approval(...), waiting

        The function is given the old instance and the name of its state, and returns the new one and its state. It
        raises `Reject` of an instance that has to stay as it is.
        """
        known = [other.process_version for other in cls.process_previous]
        if from_version not in known:
            listed = ", ".join(map(str, known)) or "none"
            raise DeclarationError(
                f"{cls.__name__}.migrate(from_version={from_version}): the versions in its previous= are {listed}; "
                "name the class of that version there"
            )
        if from_version in cls._moves:
            raise DeclarationError(
                f"{cls.__name__}.migrate(from_version={from_version}): there is "
                f"{cls._moves[from_version].__name__} already"
            )

        def register(function: _Function) -> _Function:
            if not inspect.isfunction(function) or inspect.iscoroutinefunction(function):
                raise DeclarationError(
                    f"{cls.__name__}.migrate: {function!r} must be a plain def: it runs inside a commit"
                )
            cls._moves[from_version] = function
            return function

        return register

    @classmethod
    def moves(cls) -> Mapping[int, Callable[..., Any]]:
        """What was declared with `migrate`, by the version it begins at."""
        return cls._moves

    @classmethod
    def named(cls, state: str) -> Declared | None:
        """The state of that name; None if there is none."""
        return cls._states.get(state)

    @classmethod
    def has(cls, state: object) -> bool:
        """Whether it is a state of this very version."""
        return isinstance(state, Declared) and cls._states.get(state.name) is state

    @classmethod
    def definition(cls) -> Definition:
        """The process as data.

        Raises:
            DeclarationError: Something is wrong with it, all of it told.
        """
        made = Definition(
            name=cls.process_name,
            version=cls.process_version,
            correlate={event.event_type: cls.field_of(event) for event in cls.events()},
            starts=tuple(rule(event, to, None, made) for event, to, made in cls._starts),
            states=tuple(state.as_data() for state in cls._states.values()),
            unexpected=cls._unexpected,
            late=cls._late,
        )
        if found := list(problems(made)):
            raise DeclarationError(f"{cls.__name__}: {'; '.join(found)}")
        return made

    @classmethod
    def events(cls) -> tuple[type[Event], ...]:
        """Classes of the events it takes."""
        found = [event for event, _, _ in cls._starts]
        return tuple(dict.fromkeys([*found, *(event for state in cls._states.values() for event in state.events)]))

    @classmethod
    def emits(cls) -> tuple[type[Event], ...]:
        """Classes of the events it may emit."""
        return tuple(dict.fromkeys(event for made in cls.actions().values() for event in made.emits))

    @classmethod
    def actions(cls) -> dict[str, Action]:
        """Its functions, by name.

        Raises:
            DeclarationError: Two have one name, by which a definition tells them apart.
        """
        found: dict[str, Action] = {}
        made = [each for _, _, each in cls._starts]
        for each in (*made, *(one for state in cls._states.values() for one in state.actions)):
            if found.setdefault(each.name, each).function is not each.function:
                raise DeclarationError(f"{cls.__name__}: two functions are named {each.name!r}; rename one")
        return found

    @classmethod
    def guards(cls) -> dict[str, Callable[..., bool]]:
        """Its guards, by name."""
        return {guard.__name__: guard for state in cls._states.values() for guard in state.guards}

    @classmethod
    def field_of(cls, event: type[Event]) -> str:
        """Field of the event that names the instance.

        Raises:
            DeclarationError: The event has no such field.
        """
        name = cls._by if isinstance(cls._by, str) else cls._by.get(event, "")
        if name != CORRELATION and name not in event.model_fields:
            fields = ", ".join(event.model_fields) or "none"
            raise DeclarationError(
                f"{cls.__name__}: {event.__name__} has no field {name!r} that would name the instance; it has: "
                f"{fields}. Where fields differ, by= is a mapping of event class to field"
            )
        if name != CORRELATION and is_sensitive(event, name):
            raise DeclarationError(
                f"{cls.__name__}: by={name!r} is Sensitive in {event.__name__}, and an instance's key is in every "
                "listing; take another field"
            )
        return name

    @classmethod
    def _declare(cls, name: str, *, is_final: bool) -> Declared:
        if not _NAME.match(name):
            raise DeclarationError(f"{cls.__name__}: {name!r} is no name of a state; write for example 'waiting'")
        if name in cls._states:
            raise DeclarationError(f"{cls.__name__}: there is a state {name!r} already")
        cls._states[name] = made = Declared(cls.process_name, name, is_final)
        return made
