"""Handlers made ready to call: annotations resolved, parameters matched, emits known. Done when the App is built."""

import inspect
import types
import typing
from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from choreo.context import Context
from choreo.emits import ANY, Count, Emits, declared_emits
from choreo.errors import DeclarationError, UndeclaredEmission
from choreo.event import Event
from choreo.instances import INSTANCES
from choreo.service import Handler

Around = typing.Callable[[Context], AbstractAsyncContextManager[Any]]
Kind = Literal["coroutine", "function", "async_generator", "generator"]

TRANSACTIONS: Mapping[str, tuple[Kind, ...]] = {
    "sqlite3.Connection": ("function", "generator"),
    "psycopg.Connection": ("function", "generator"),
    "psycopg.AsyncConnection": ("coroutine", "async_generator"),
    "sqlalchemy.orm.session.Session": ("function", "generator"),
    "sqlalchemy.ext.asyncio.session.AsyncSession": ("coroutine", "async_generator"),
    INSTANCES: ("function", "generator"),
}
"""Parameter types that mean the unit's transaction, by qualified name so that no driver is imported for it, and the
handlers that may ask for them."""


@dataclass(frozen=True, slots=True)
class BoundHandler:
    """A handler and how its parameters are filled.

    Attributes:
        classes: Event class by (type, version).
        contexts, transactions: Names of parameters that take the Context, the unit's transaction.
        transaction: Qualified name of the transaction's type, empty if it asks for none.
        resources: Parameter name -> the annotated type, given by the App's resources.
        emits: What it may emit.
        counts: How many of each it emits for one event, as far as the return annotation says.
        emits_min: How many events it emits at least, whichever of them.
    """

    handler: Handler
    kind: Kind
    classes: Mapping[tuple[str, int], type[Event]]
    contexts: tuple[str, ...]
    transactions: tuple[str, ...]
    transaction: str
    resources: Mapping[str, Any]
    emits: tuple[type[Event], ...]
    counts: Mapping[type[Event], Count]
    emits_min: int

    @property
    def transacts(self) -> bool:
        """Whether it is invoked inside the transaction its key commits in."""
        return bool(self.transactions)

    @property
    def is_async(self) -> bool:
        """Whether it is invoked on the event loop."""
        return self.kind in ("coroutine", "async_generator")

    def arguments(self, context: Context, resources: Mapping[Any, Any], transaction: Any = None) -> dict[str, Any]:
        """Keyword arguments of one call, but for the event."""
        arguments: dict[str, Any] = dict.fromkeys(self.contexts, context) if self.contexts else {}
        if self.transactions:
            arguments.update(dict.fromkeys(self.transactions, transaction))
        if self.resources:
            arguments.update({name: resources[wanted] for name, wanted in self.resources.items()})
        return arguments

    def emitted(self, result: Any) -> list[Event]:
        """What a handler returned, as a list of declared events.

        Raises:
            UndeclaredEmission: Something else than declared was returned.
        """
        if result is None:
            return []
        if type(result) in self.emits:  # what `isinstance` asks a model's class, which is slow
            return [result]
        events = [result] if isinstance(result, Event) else self._listed(result)
        for event in events:
            if not isinstance(event, self.emits):
                declared = " | ".join(each.__name__ for each in self.emits) or "None"
                raise UndeclaredEmission(
                    f"{self.handler.label} returned {type(event).__name__}, and its annotation declares {declared}; "
                    "add it to the return annotation or to emits="
                )
        return events

    def _listed(self, result: Any) -> list[Event]:
        if isinstance(result, (list, tuple, set, frozenset)) or self.kind == "generator":
            return [each for each in result if each is not None]
        raise UndeclaredEmission(
            f"{self.handler.label} returned {type(result).__name__}: return an event, a list of events or None"
        )


def bind(handler: Handler) -> BoundHandler:
    """Resolve a handler's annotations.

    Raises:
        DeclarationError: A parameter or the return annotation is missing or cannot be what it says.
    """
    hints = _hints(handler)
    parameters = list(inspect.signature(handler.function).parameters.values())
    if not parameters:
        raise DeclarationError(
            f"{handler.label} takes no parameter; its first one is the event: "
            f"def {handler.name}(event: {handler.events[0].__name__})"
        )
    _check_event_parameter(handler, parameters[0].name, hints)
    if parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise DeclarationError(
            f"{handler.label}: the event is given by position; take {parameters[0].name!r} before the *"
        )
    contexts, transactions, resources = [], {}, {}
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise DeclarationError(
                f"{handler.label}: *args and **kwargs cannot be filled by type; name the parameters"
            )
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise DeclarationError(f"{handler.label}: {parameter.name!r} is given by name; move the / before it")
        wanted = hints.get(parameter.name)
        if wanted is None:
            raise DeclarationError(
                f"{handler.label}: the parameter {parameter.name!r} has no annotation, and parameters are filled by "
                f"type; annotate it with Context, a database connection or the type of a resource"
            )
        if wanted is Context:
            contexts.append(parameter.name)
        elif transaction_type(wanted) is not None:
            transactions[parameter.name] = str(transaction_type(wanted))
        else:
            resources[parameter.name] = wanted
    kind = _kind(handler.function)
    _check_transactions(handler, kind, set(transactions.values()))
    for event in handler.events:
        event.check_upcasters()
    classes = {(event.event_type, event.event_version): event for event in handler.events}
    stated = handler.emits
    emits = declared_emits(handler.label, hints) if stated is None else Emits(dict.fromkeys(stated, ANY), 0)
    transaction = next(iter(transactions.values()), "")
    names = tuple(contexts), tuple(transactions)
    return BoundHandler(handler, kind, classes, *names, transaction, resources, tuple(emits.counts), *emits)


def transaction_type(wanted: Any) -> str | None:
    """The qualified name of a type that stands for the unit's transaction, None for any other."""
    type_ = get_origin(wanted) or wanted
    name = f"{type_.__module__}.{type_.__qualname__}" if isinstance(type_, type) else ""
    return name if name in TRANSACTIONS else None


def _check_transactions(handler: Handler, kind: Kind, wanted: Collection[str]) -> None:
    if len(wanted) > 1:
        raise DeclarationError(
            f"{handler.label} asks for {' and '.join(sorted(wanted))}, and a unit has one transaction; take one of "
            "them, with Context its `transaction` is the driver's own connection"
        )
    for name in wanted:
        if kind in TRANSACTIONS[name]:
            continue
        if name == "sqlite3.Connection":
            raise DeclarationError(
                f"{handler.label}: SQLite's write lock must not be held while a handler is awaited; make it a plain "
                f"def (it runs inside the commit), and do calls to the outside in an async handler of their own"
            )
        instead = next(each for each in TRANSACTIONS if kind in TRANSACTIONS[each] and each[:8] == name[:8])
        raise DeclarationError(f"{handler.label}: {name} is not for a handler of this kind; ask for {instead}")


def _kind(function: Any) -> Kind:
    if inspect.isasyncgenfunction(function):
        return "async_generator"
    if inspect.iscoroutinefunction(function):
        return "coroutine"
    return "generator" if inspect.isgeneratorfunction(function) else "function"


def _hints(handler: Handler) -> dict[str, Any]:
    try:
        return typing.get_type_hints(handler.function)
    except NameError as error:
        raise DeclarationError(
            f"{handler.label}: the name {error.name!r} in its annotations is not defined at run time; import it "
            "outside of `if TYPE_CHECKING:`, since choreo reads annotations to know the flow"
        ) from None


def _check_event_parameter(handler: Handler, name: str, hints: Mapping[str, Any]) -> None:
    wanted = " | ".join(event.__name__ for event in handler.events)
    hint = hints.get(name)
    if hint is None:
        raise DeclarationError(f"{handler.label}: annotate its first parameter with the event: {name}: {wanted}")
    accepted = tuple(each for each in _alternatives(hint) if isinstance(each, type))
    missing = [event.__name__ for event in handler.events if not accepted or not issubclass(event, accepted)]
    if missing:
        raise DeclarationError(
            f"{handler.label} subscribes to {', '.join(missing)}, which its first parameter does not take; "
            f"write {name}: {wanted}"
        )


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
