"""What the commands have in common: two consoles, options, errors in one line, and MODULE:APP."""

import asyncio
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import orjson
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from choreo.app import App
from choreo.errors import ChoreoError, ConfigurationError, DeclarationError
from choreo.opening import STORES

FAILED, MISUSED = 1, 2
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_Function = TypeVar("_Function", bound=Callable[..., Any])

Target = Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where the App is, such as shop.app:app.")]
Broker = Annotated[
    str,
    typer.Option(
        envvar="CHOREO_BROKER", help="embedded:PATH, kafka://host:port[,host:port] or kafka+confluent://..."
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar="CHOREO_STORE", help=f"{STORES}; PATH may hold {{service}}. Not needed with an embedded broker."
    ),
]
TraceMode = Annotated[
    str,
    typer.Option(envvar="CHOREO_TRACE_MODE", help="How a span hangs on what caused it: parent, link or both."),
]
SplitAfter = Annotated[
    str,
    typer.Option(
        "--trace-split-after", envvar="CHOREO_TRACE_SPLIT_AFTER", help="An older event begins a trace of its own."
    ),
]
HealthPort = Annotated[
    int | None,
    typer.Option(
        envvar="CHOREO_HEALTH_PORT", min=0, max=65535, help="Serve /livez, /readyz and /metrics on this port."
    ),
]
HealthHost = Annotated[
    str, typer.Option(envvar="CHOREO_HEALTH_HOST", help="Where: 0.0.0.0 in a container, if others are to ask.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for programs.")]


def out() -> Console:
    """Standard output, as it is now: tests exchange it."""
    return Console(soft_wrap=True)


def err() -> Console:
    """Standard error."""
    return Console(stderr=True, soft_wrap=True)


def print_json(found: Any) -> None:
    """One JSON document."""
    typer.echo(orjson.dumps(found, option=orjson.OPT_INDENT_2).decode())


def fail(message: str, code: int = FAILED) -> NoReturn:
    """One red line, and out."""
    err().print(f"[bold red]error:[/] {escape(' '.join(message.split()))}", highlight=False)
    raise typer.Exit(code)


def exit_code(error: ChoreoError) -> int:
    """2 for what was declared or configured wrongly, 1 for what went wrong."""
    return MISUSED if isinstance(error, (DeclarationError, ConfigurationError)) else FAILED


def reported(command: _Function) -> _Function:
    """Errors of choreo end a command with one line and no traceback."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ChoreoError as error:
            fail(str(error), exit_code(error))

    return wrapped  # type: ignore[return-value]


def run_async(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run it to its end; an interrupt is no traceback."""
    try:
        return asyncio.run(coroutine)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def load_app(target: str) -> App:
    """The App at MODULE:APP, modules of the current folder included.

    Raises:
        ConfigurationError: There is none; the message says what is missing.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigurationError(f"{target!r} is no MODULE:APP; write for example shop.app:app")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ChoreoError:
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"there is no module {error.name!r}; run choreo in the folder that holds it, or set PYTHONPATH"
            ) from None
        raise ConfigurationError(f"importing {module_name} failed: {error}; install what is missing") from error
    except Exception as error:
        raise ConfigurationError(f"importing {module_name} failed: {_where(error)}") from error
    found = getattr(module, name, None)
    if not isinstance(found, App):
        apps = ", ".join(f"{module_name}:{each}" for each, value in vars(module).items() if isinstance(value, App))
        said = "has no such name" if found is None else f"is a {type(found).__name__} and no App"
        raise ConfigurationError(f"{target} {said}; " + (f"there is {apps}" if apps else "name the App in it"))
    return found


def seconds(text: str) -> float:
    """`7d` as seconds.

    Raises:
        ConfigurationError: It is no such length of time.
    """
    found = re.fullmatch(r"(\d{1,6})([smhdw])", text)
    if found is None:
        raise ConfigurationError(f"{text!r} is no length of time: write a number and s, m, h, d or w, such as 7d")
    return float(int(found[1]) * _UNITS_S[found[2]])


def moment_ms(text: str, now_s: float) -> int:
    """`7d` (ago) or `2026-07-01T12:00` (UTC unless it says otherwise) as milliseconds since the epoch.

    Raises:
        ConfigurationError: It is neither.
    """
    if re.fullmatch(r"\d{1,6}[smhdw]", text):
        return max(0, int((now_s - seconds(text)) * 1000))
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{text!r} is no time: write how long ago, such as 90s, 30m, 12h, 7d or 2w, or a time such as "
            "2026-07-01T12:00Z"
        ) from None
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def embedded_path(broker: str) -> Path | None:
    """The file of an embedded broker, or None for any other."""
    kind, _, path = broker.partition(":")
    return Path(path) if kind == "embedded" and path != ":memory:" else None


def require_log(broker: str) -> None:
    """Reading a log must not create one: a mistyped path is an error.

    Raises:
        ConfigurationError: The file of the embedded broker is not there.
    """
    path = embedded_path(broker)
    if path is not None and not path.exists():
        raise ConfigurationError(f"there is no embedded log at {path}; give the --broker that the services run on")


def _where(error: Exception) -> str:
    """The error and the last line of code it passed."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    place = f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})" if last is not None else ""
    if isinstance(error, ValidationError):  # it quotes all it was given: other settings, and their passwords
        wrong = ((".".join(map(str, each["loc"])), each["msg"]) for each in error.errors(include_input=False))
        return f"{error.title}: {'; '.join(f'{name}: {said}' for name, said in wrong)}{place}"
    return f"{type(error).__name__}: {error}{place}"
