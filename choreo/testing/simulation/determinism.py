"""Real time and real randomness are not to be had in a simulation: from handlers they are refused by name.

choreo and the libraries below it get virtual ones instead. What cannot be caught, such as `datetime.now()`, is found
by running a seed twice and comparing the histories.
"""

import logging
import os
import random
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from choreo.core import units
from choreo.testing.simulation.errors import Unsimulated

if TYPE_CHECKING:
    from choreo.testing.simulation.world import World

_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_CHOREO = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
_EXAMPLES = os.path.join(_CHOREO, "examples") + os.sep


class _Counted(dict[Any, Any]):
    """The core's table, counting which of its rows are used."""

    def __init__(self, table: Any, world: "World") -> None:
        super().__init__(table)
        self._seen = world.transitions

    def __getitem__(self, key: Any) -> Any:
        self._seen[key] += 1
        return super().__getitem__(key)


@contextmanager
def deterministic(world: "World", seed: int) -> Iterator[None]:
    """While the block runs, in this process."""
    chance = random.Random(f"library {seed}")

    def guarded(name: str, instead: Callable[..., Any], advice: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code
            path = caller.co_filename
            ours = path.startswith(_CHOREO) and not path.startswith(_EXAMPLES)
            if not ours and not path.startswith(_LIBRARIES) and not path.startswith("<"):
                error = Unsimulated(
                    f"{caller.co_qualname} calls {name} ({os.path.basename(path)}:{sys._getframe(1).f_lineno}): "
                    f"{advice}"
                )
                world.failure = world.failure or error
                raise error
            return instead(*args, **kwargs)

        return call

    now = "take the time from ctx.now()"
    dice = "let the handler be given a resource that draws, or derive it from ctx.idempotency_key"
    patches: list[tuple[Any, str, Callable[..., Any], str]] = [
        (time, "time", lambda: world.loop.now_s, now),
        (time, "time_ns", lambda: int(world.loop.now_s * 1e9), now),
        (time, "monotonic", lambda: world.loop.now_s, now),
        (time, "perf_counter", lambda: world.loop.now_s, now),
        (time, "sleep", lambda _: None, "await asyncio.sleep() in an async handler takes virtual time"),
        (os, "urandom", chance.randbytes, dice),
        *(
            (random, name, getattr(chance, name), dice)
            for name in (
                "random",
                "uniform",
                "randint",
                "randrange",
                "choice",
                "shuffle",
                "sample",
                "getrandbits",
                "randbytes",
            )
        ),
    ]
    saved = [(module, name, getattr(module, name)) for module, name, _, _ in patches]
    table, logger = units.TRANSITIONS, logging.getLogger("choreo")
    level = logger.level
    for module, name, instead, advice in patches:
        setattr(module, name, guarded(f"{module.__name__}.{name}()", instead, advice))
    units.TRANSITIONS = _Counted(table, world)
    logger.setLevel(logging.CRITICAL + 1)  # thousands of lines of what is done on purpose
    try:
        yield
    finally:
        logger.setLevel(level)
        units.TRANSITIONS = table
        for module, name, real in saved:
            setattr(module, name, real)
