"""Handlers bound when the App is built: what is filled, what may be emitted, and what is said of a wrong one."""

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Optional, Union

import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from choreo.binding import BoundHandler, bind
from choreo.context import Context
from choreo.errors import DeclarationError, UndeclaredEmission
from choreo.event import Event
from choreo.service import Service

if TYPE_CHECKING:
    from fractions import Fraction


class Placed(Event, type="order.placed", topic="orders"):
    """What the handlers here handle."""


class Cancelled(Event, type="order.cancelled", topic="orders"):
    """A second one."""


class A(Event, type="a", topic="t"):
    """Emitted."""


class B(Event, type="b", topic="t"):
    """Emitted too."""


class Mixin(Event):
    """No type."""


class Port:
    """A resource."""


def bound(function: Callable[..., Any], *events: type[Event], emits: Any = None) -> BoundHandler:
    """The function as the App has it."""
    service = Service("inventory")
    service.handler(*(events or (Placed,)), emits=emits)(function)
    return bind(next(iter(service.handlers.values())))


def said(function: Callable[..., Any], *events: type[Event]) -> str:
    """What is said of a handler that is declared wrongly."""
    with pytest.raises(DeclarationError) as caught:
        bound(function, *events)
    assert str(caught.value).startswith("inventory.handle")
    return str(caught.value)


async def coroutine(event: Placed) -> None:
    """An async handler."""


async def async_generator(event: Placed) -> AsyncIterator[A]:
    """An async iterator of emits."""
    yield A()


def plain(event: Placed) -> None:
    """A plain handler."""


def generator(event: Placed) -> Iterator[A]:
    """A plain iterator of emits."""
    yield A()


@pytest.mark.parametrize("function", [coroutine, async_generator, plain, generator])
def test_the_kind_of_a_handler_is_known(function: Callable[..., Any]) -> None:
    """Each of the four ways to write one, and the decorated function is the function itself."""
    assert bound(function).kind == {"plain": "function"}.get(function.__name__, function.__name__)
    assert Service("other").handler(Placed)(function) is function


def test_parameters_are_filled_by_type() -> None:
    """Context, transaction and resources, whatever their names and their order."""

    def handle(event: Placed, a: Port, b: sqlite3.Connection, c: Context, d: "Decimal") -> None:
        pass

    handler = bound(handle)
    assert (handler.contexts, handler.transactions) == (("c",), ("b",))
    assert handler.resources == {"a": Port, "d": Decimal}
    assert handler.transacts
    port, context = Port(), Context.fake()
    assert handler.arguments(context, {Port: port, Decimal: Decimal(1)}, "tx") == {
        "a": port,
        "b": "tx",
        "c": context,
        "d": Decimal(1),
    }


def test_a_handler_without_a_transaction_runs_outside_of_the_commit() -> None:
    """Async handlers, and plain ones that ask for no connection."""
    assert not bound(coroutine).transacts
    assert not bound(plain).transacts


def test_several_events_are_told_by_type_and_version() -> None:
    """One handler of two classes."""

    def handle(event: Placed | Cancelled) -> None:
        pass

    assert bound(handle, Placed, Cancelled).classes == {
        ("order.placed", 1): Placed,
        ("order.cancelled", 1): Cancelled,
    }


def test_the_first_parameter_may_be_wider_than_the_event() -> None:
    """A base class takes each of its events."""

    def handle(event: Event) -> None:
        pass

    assert bound(handle, Placed, Cancelled).emits == ()


@pytest.mark.parametrize(
    ("returns", "emits"),
    [
        (None, ()),
        (A, (A,)),
        (A | None, (A,)),
        (A | B | None, (A, B)),
        (Optional[A], (A,)),  # noqa: UP045
        (Union[A, B], (A, B)),  # noqa: UP007
        (list[A | B], (A, B)),
        (list[A] | B | None, (A, B)),
        (tuple[A, ...], (A,)),
        (tuple[A, B], (A, B)),
        (Sequence[A | A], (A,)),
        (set[A] | frozenset[B], (A, B)),
        (AsyncIterator[A | B], (A, B)),
        (AsyncGenerator[A, None], (A,)),
        (Iterator[A], (A,)),
        (Generator[A, int, str], (A,)),
        (Annotated[A | None, "why"], (A,)),
        ("A | B", (A, B)),
    ],
)
def test_the_return_annotation_declares_the_emits(returns: Any, emits: tuple[type[Event], ...]) -> None:
    """Unions, collections and iterators, in any nesting, each class once."""

    def handle(event: Placed) -> None:
        pass

    handle.__annotations__["return"] = returns
    assert bound(handle).emits == emits


def test_emits_of_the_decorator_counts_where_it_is_given() -> None:
    """For functions whose annotation cannot say it."""

    def handle(event: Placed):  # type: ignore[no-untyped-def]
        pass

    assert bound(handle, emits=A).emits == (A,)
    assert bound(handle, emits=[A, B]).emits == (A, B)
    assert bound(handle, emits=()).emits == ()


def test_a_handler_takes_at_least_the_event() -> None:
    """The message shows its first line as it should be."""

    def handle() -> None:
        pass

    assert said(handle) == (
        "inventory.handle takes no parameter; its first one is the event: def handle(event: Placed)"
    )


def test_the_first_parameter_is_annotated() -> None:
    """With the events subscribed to."""

    def handle(event) -> None:  # type: ignore[no-untyped-def]
        pass

    assert said(handle, Placed, Cancelled) == (
        "inventory.handle: annotate its first parameter with the event: event: Placed | Cancelled"
    )


def test_the_first_parameter_takes_every_event() -> None:
    """An event subscribed to and not taken would fail at its first record."""

    def handle(order: Placed) -> None:
        pass

    def handle_text(order: str) -> None:
        pass

    def handle_list(order: list[Placed]) -> None:
        pass

    assert said(handle, Placed, Cancelled) == (
        "inventory.handle subscribes to Cancelled, which its first parameter does not take; "
        "write order: Placed | Cancelled"
    )
    for wrong in (handle_text, handle_list):
        assert "subscribes to Placed, which its first parameter does not take; write order: Placed" in said(wrong)


def test_every_parameter_is_annotated() -> None:
    """Parameters are filled by type and not by name."""

    def handle(event: Placed, db) -> None:  # type: ignore[no-untyped-def]
        pass

    assert said(handle) == (
        "inventory.handle: the parameter 'db' has no annotation, and parameters are filled by type; "
        "annotate it with Context, a database connection or the type of a resource"
    )


def test_stars_cannot_be_filled() -> None:
    """Neither of the two."""

    def handle_args(event: Placed, *args: Port) -> None:
        pass

    def handle_kwargs(event: Placed, **kwargs: Port) -> None:
        pass

    for function in (handle_args, handle_kwargs):
        assert said(function) == (
            f"inventory.{function.__name__}: *args and **kwargs cannot be filled by type; name the parameters"
        )


def test_a_transaction_is_given_to_a_plain_function_only() -> None:
    """SQLite's write lock is never held while a handler is awaited."""

    async def handle(event: Placed, db: sqlite3.Connection) -> None:
        pass

    async def handle_values(event: Placed, db: sqlite3.Connection) -> AsyncIterator[A]:
        yield A()

    for function in (handle, handle_values):
        assert said(function) == (
            f"inventory.{function.__name__}: SQLite's write lock must not be held while a handler is awaited; make "
            "it a plain def (it runs inside the commit), and do calls to the outside in an async handler of their own"
        )


def test_a_transaction_goes_with_the_kind_of_the_handler() -> None:
    """A coroutine awaits its connection, a plain function must not; generics and generators are what they wrap."""

    async def handle_plain_in_async(event: Placed, db: psycopg.Connection[Any]) -> None: ...

    def handle_async_in_plain(event: Placed, db: AsyncSession) -> None: ...

    async def handle_both(event: Placed, db: AsyncSession, raw: psycopg.AsyncConnection[Any]) -> None: ...

    def collected(event: Placed, db: Session) -> Iterator[A]:
        yield A()

    assert "psycopg.Connection is not for a handler of this kind; ask for psycopg.AsyncConnection" in said(
        handle_plain_in_async
    )
    assert "ask for sqlalchemy.orm.session.Session" in said(handle_async_in_plain)
    assert "a unit has one transaction" in said(handle_both)
    handler = bound(collected)
    assert (handler.transaction, handler.is_async) == ("sqlalchemy.orm.session.Session", False)


def test_a_handler_says_what_it_returns() -> None:
    """Without an annotation nobody knows the flow before it runs."""

    def handle(event: Placed):  # type: ignore[no-untyped-def]
        pass

    assert said(handle) == (
        "inventory.handle has no return annotation, which declares what it may emit; write `-> None`, "
        "`-> StockReserved`, `-> A | B | None`, `-> list[A | B]`, or give emits= to the decorator"
    )


@pytest.mark.parametrize(
    "returns", [str, Any, dict[str, A], list[int], Mixin, A | int, Event, list, Callable[[A], B]]
)
def test_a_handler_returns_events_only(returns: Any) -> None:
    """Anything else, a class without a type included, could not be sent."""

    def handle(event: Placed) -> None:
        pass

    handle.__annotations__["return"] = returns
    message = said(handle)
    assert message.startswith("inventory.handle: its return annotation names ")
    assert message.endswith(
        ", which is no Event class with a type; a handler returns events, lists of events or None"
    )


def test_a_name_imported_for_type_checking_only() -> None:
    """It is not there at run time; the message names it and says where to import it."""

    def handle(event: Placed, price: "Fraction") -> None:
        pass

    assert said(handle) == (
        "inventory.handle: the name 'Fraction' in its annotations is not defined at run time; import it outside of "
        "`if TYPE_CHECKING:`, since choreo reads annotations to know the flow"
    )


def test_what_is_returned_becomes_a_list_of_events() -> None:
    """None, one event, a collection with gaps."""

    def handle(event: Placed) -> A | B | None:
        return None

    handler = bound(handle)
    assert handler.emitted(None) == []
    assert handler.emitted(A()) == [A()]
    assert handler.emitted([A(), None, B()]) == [A(), B()]
    assert handler.emitted((A(),)) == [A()]
    assert bound(generator).emitted(generator(Placed())) == [A()]


def test_what_was_not_declared_is_refused() -> None:
    """Another event, or no event at all: the message says what to add where."""
    handler = bound(generator)
    with pytest.raises(UndeclaredEmission) as caught:
        handler.emitted([A(), B()])
    assert str(caught.value) == (
        "inventory.generator returned B, and its annotation declares A; add it to the return annotation or to emits="
    )
    with pytest.raises(UndeclaredEmission, match=r"plain returned A, and its annotation declares None"):
        bound(plain).emitted(A())
    with pytest.raises(UndeclaredEmission, match=r"plain returned str: return an event, a list of events or None"):
        bound(plain).emitted("done")
    with pytest.raises(UndeclaredEmission, match=r"plain returned dict: return an event, a list of events or None"):
        bound(plain).emitted({})


def test_a_positional_only_parameter_is_refused() -> None:
    """Parameters are given by name, so a handler with one could never be called."""

    def handle(event: Placed, port: Port, /) -> None:
        pass

    assert "port" in said(handle)


def test_an_event_by_keyword_only_is_refused() -> None:
    """The event is given by position, so a handler that takes it by name could never be called."""

    def handle(*, event: Placed) -> None:
        pass

    assert "event" in said(handle)
