"""What handlers are given by type: found for each parameter, opened at the start, closed at the end."""

import inspect
import typing
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from choreo.errors import DeclarationError


class Resources:
    """What handlers are given by type."""

    def __init__(self, given: Sequence[Any] | Mapping[Any, Any]) -> None:
        self._given: dict[Any, Any] = dict(given) if isinstance(given, Mapping) else {}
        if not isinstance(given, Mapping):
            self._given = {_offered(each): each for each in given}

    def offers(self, wanted: Any) -> bool:
        """Whether something of the type is there."""
        return self._find(wanted) is not None

    async def open(self, overrides: Mapping[Any, Any], wanted: set[Any], stack: AsyncExitStack) -> dict[Any, Any]:
        """The instances that are wanted, by type; generators are closed with `stack`."""
        merged = Resources({**self._given, **overrides})
        opened: dict[Any, Any] = {}
        instances: dict[Any, Any] = {}
        for type_ in wanted:
            key = merged._find(type_)
            if key not in opened:
                opened[key] = await _open(merged._given[key], stack)
            instances[type_] = opened[key]
        return instances

    def _find(self, wanted: Any) -> Any:
        if wanted in self._given:
            return wanted
        if not isinstance(wanted, type):
            return None
        return next((key for key in self._given if isinstance(key, type) and issubclass(key, wanted)), None)


def _offered(resource: Any) -> Any:
    if not inspect.isasyncgenfunction(resource):
        return type(resource)
    arguments = typing.get_args(typing.get_type_hints(resource).get("return"))
    if not arguments:
        raise DeclarationError(
            f"the resource {resource.__qualname__} must say what it yields: -> AsyncIterator[PaymentProvider]"
        )
    return arguments[0]


async def _open(resource: Any, stack: AsyncExitStack) -> Any:
    if inspect.isasyncgenfunction(resource):
        return await stack.enter_async_context(asynccontextmanager(resource)())
    return resource
