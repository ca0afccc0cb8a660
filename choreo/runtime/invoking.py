"""Calls a handler: its arguments, the hooks around it, threads for plain functions, and what its failure means."""

import asyncio
import contextvars
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

from choreo.binding import Around, BoundHandler
from choreo.context import Context, invocation
from choreo.core.messages import Raised
from choreo.core.retry import rule_for
from choreo.core.units import Unit
from choreo.errors import ChoreoError, Disposition, RetryLater, UnknownVersion
from choreo.event import Event
from choreo.ports import Clock
from choreo.runtime.work import Work


class Invoker:
    """Invokes handlers of one service.

    Args:
        inline: Call plain functions on the event loop: one order of things, for tests.
    """

    def __init__(
        self, resources: Mapping[Any, Any], around: Sequence[Around], clock: Clock, *, inline: bool = False
    ) -> None:
        self._resources = resources
        self._around = tuple(around)
        self._clock = clock
        self._on_loop = inline

    def context(self, unit: Unit, connection: Any = None) -> Context:
        """The Context of one invocation."""
        work: Work = unit.work
        assert work.envelope is not None
        assert work.bound is not None
        handler = work.bound.handler
        key = (work.outside_key or unit.digest).hex()
        return Context(key, work.envelope, unit.attempts, self._now, handler.service, handler.name, connection)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock.now_s(), UTC)

    def invoke(self, unit: Unit, transaction: Any = None, connection: Any = None) -> Awaitable[Any]:
        """Call the handler, inside a transaction if one is given, and on its connection.

        What it returns is for `BoundHandler.emitted`. The current context is the handler's: whoever goes on in it
        puts `invocation` back.
        """
        bound: BoundHandler = unit.work.bound
        context = self.context(unit, connection)
        invocation.set(context)
        arguments = bound.arguments(context, self._resources, transaction)
        if self._around:
            return self._surrounded(bound, context, unit.work.event, arguments)
        return self._call(bound, unit.work.event, arguments)

    async def _surrounded(
        self, bound: BoundHandler, context: Context, event: Any, arguments: Mapping[str, Any]
    ) -> list[Event]:
        async with AsyncExitStack() as stack:
            for around in self._around:
                await stack.enter_async_context(around(context))
            return bound.emitted(await self._call(bound, event, arguments))
        raise AssertionError("a hook in around= swallowed the handler's exception")

    def _call(self, bound: BoundHandler, event: Any, arguments: Mapping[str, Any]) -> Awaitable[Any]:
        if bound.kind == "coroutine":
            found: Awaitable[Any] = bound.handler.function(event, **arguments)
            return found
        return self._call_other(bound, event, arguments)

    async def _call_other(self, bound: BoundHandler, event: Any, arguments: Mapping[str, Any]) -> Any:
        function = bound.handler.function
        if bound.kind == "async_generator":
            return [emitted async for emitted in function(event, **arguments)]
        if self._on_loop:
            return _plain(bound, event, arguments)
        return await asyncio.to_thread(_plain, bound, event, arguments)

    async def inside(self, unit: Unit, attach: Callable[[], None]) -> "Inside":
        """Prepare a plain handler that will be called inside a transaction: hooks are entered here, on the loop.

        `attach` is called in the context the handler will see: what is traced there nests below the unit's span.
        """
        inside = Inside(self, unit, attach)
        if self._around:
            try:
                await asyncio.get_running_loop().create_task(inside.enter(self._around), context=inside.variables)
            except Exception as error:
                await inside.leave(error)
                raise
        return inside

    def call_inside(self, unit: Unit, context: Context, transaction: Any) -> list[Event]:
        """Call a plain handler inside a transaction, on the database's thread."""
        bound: BoundHandler = unit.work.bound
        return bound.emitted(_plain(bound, unit.work.event, bound.arguments(context, self._resources, transaction)))


class Inside:
    """One invocation of a plain handler inside a transaction. Hooks see the same context variables as the handler."""

    def __init__(self, invoker: Invoker, unit: Unit, attach: Callable[[], None]) -> None:
        self.variables = contextvars.copy_context()
        self._invoker = invoker
        self._unit = unit
        self.context = invoker.context(unit)
        self._attach: Callable[[], None] | None = attach
        self.variables.run(invocation.set, self.context)
        self._stack = AsyncExitStack()
        self._error: Exception | None = None

    async def enter(self, around: Sequence[Around]) -> None:
        """Enter the hooks."""
        self._begin()
        for each in around:
            await self._stack.enter_async_context(each(self.context))

    def call(self, transaction: Any, connection: Any) -> list[Event]:
        """Call the handler with the unit's transaction, which is on `connection`."""
        self.context.transaction = connection
        self._error = self.context.flow = None  # it may be called again, if its transaction could not be committed
        try:
            self.variables.run(self._begin)
            return self.variables.run(self._invoker.call_inside, self._unit, self.context, transaction)
        except Exception as error:
            self._error = error
            raise

    def _begin(self) -> None:
        attach, self._attach = self._attach, None
        if attach is not None:
            attach()

    async def leave(self, error: Exception | None = None) -> None:
        """Leave the hooks; they are told what the handler raised, or `error`."""
        if not self._invoker._around:
            return
        told = error or self._error
        await asyncio.get_running_loop().create_task(self._exit(told), context=self.variables)

    async def _exit(self, error: Exception | None) -> None:
        try:
            await self._stack.__aexit__(type(error) if error else None, error, error.__traceback__ if error else None)
        except Exception as raised_:
            if raised_ is not error:
                raise


def _plain(bound: BoundHandler, event: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        result = bound.handler.function(event, **arguments)
    except StopIteration as error:  # a future cannot take it: on a thread the handler would seem to run for ever
        raise RuntimeError(
            "the handler raised StopIteration, as next() does at the end of what it is given"
        ) from error
    return list(result) if bound.kind == "generator" else result


def raised(unit: Unit, error: BaseException) -> Raised:
    """What a handler's exception means for its unit."""
    disposition: Disposition = error.disposition if isinstance(error, ChoreoError) else "retry"
    rule = rule_for(unit.retry, type(error))
    trips = unit.breaker is not None and unit.breaker.counts(type(error))
    if disposition == "dead_letter" or isinstance(rule, type):
        return Raised(unit, "dead_letter", "rejected", trips=trips)
    delay_s = max(0.001, error.delay_s) if isinstance(error, (RetryLater, UnknownVersion)) else None
    return Raised(unit, disposition, "handler_failed", delay_s, rule, trips)


def describe(error: BaseException) -> str:
    """An exception for a dead letter's header: type and place. Its message may hold the payload's secrets."""
    if isinstance(error, ChoreoError):
        return str(error)
    if isinstance(error, sqlite3.Error):
        return f"{type(error).__name__} {error.sqlite_errorname}" if hasattr(error, "sqlite_errorname") else "sqlite3"
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_qualname}:{trace.tb_lineno}" if trace is not None else ""
    return f"{type(error).__name__}{where}"
