"""Exceptions for logs: the stack and the types, without what they say, which may quote a payload or a password."""

import logging

from choreo.errors import ChoreoError

CHAIN_MAX = 20
_log = logging.getLogger("choreo.exceptions")


def unsaid(error: BaseException) -> BaseException:
    """Something to log in place of `error`: of its name, with its stack, its causes and no words but choreo's own.

    The error itself where `choreo.exceptions`, or a logger above it, is at DEBUG, as under `choreo dev` and in tests.
    """
    return error if _log.isEnabledFor(logging.DEBUG) else _without_words(error, CHAIN_MAX)


def say_words() -> None:
    """Log what exceptions say from now on, for whoever develops."""
    _log.setLevel(logging.DEBUG)


def _without_words(error: BaseException, left: int) -> BaseException:
    if isinstance(error, BaseExceptionGroup):
        found: BaseException = BaseExceptionGroup("of", [_without_words(each, left) for each in error.exceptions])
    else:
        kind = type(error)
        names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        words = (str(error),) if isinstance(error, ChoreoError) else ()
        found = type(kind.__name__, (Exception,), names)(*words)
    found.__traceback__ = error.__traceback__
    if left:
        found.__cause__ = None if error.__cause__ is None else _without_words(error.__cause__, left - 1)
        hidden = error.__context__ is None or error.__context__ is error.__cause__
        found.__context__ = None if hidden else _without_words(error.__context__, left - 1)  # type: ignore[arg-type]
    found.__suppress_context__ = error.__suppress_context__
    return found
