"""What an operator does to an instance by hand, and how one is moved to another version.

Each change is made of an instance that `Instances` has loaded, and so locked, in the transaction that also keeps who
did it and why. Nothing is emitted here: what a state's entry emits is emitted by the service, woken by a timer.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson
from pydantic import ValidationError

from choreo.core.definition import TimerRule
from choreo.core.emission import key_digest
from choreo.core.process import ENTRY
from choreo.errors import ConfigurationError, Reject
from choreo.instances import Instance, Instances, Intervention, Timer
from choreo.process.interpreting import Process

DEFERRED = "(deferred)"
"""A timer of no definition: when it fires, events that wait are offered to the state that was set by hand."""
NO_RULES = (ENTRY, DEFERRED)
"""Timers that an instance may have and its definition has not."""


class Hand(NamedTuple):
    """Who does something, and why."""

    who: str
    why: str


def fire_timer(instances: Instances, process: Process, key: str, name: str, by: Hand) -> Intervention:
    """Let a timer be due now; one that repeats goes on from now.

    Raises:
        ConfigurationError: There is no such instance, or it has no such timer.
    """
    old = _loaded(instances, process, key)
    timers = {timer.name: timer for timer in instances.timers(process.name, key)}
    if name not in timers:
        there = ", ".join(timers) or "none"
        raise ConfigurationError(f"the instance {key} of {process.name} has no timer {name!r}; it has: {there}")
    now_ms = instances.now_ms
    instances.set_timer(timers[name]._replace(due_ms=min(timers[name].due_ms, now_ms)))
    return _done(old, f"fire-timer {name}", by)


def set_state(
    instances: Instances, process: Process, key: str, state: str, by: Hand, *, entry: bool = False
) -> Intervention:
    """Put an instance in a state: its timers are cancelled, those of the state set, from now on.

    Args:
        entry: The service calls the state's `entry`, within a second or so.

    Raises:
        ConfigurationError: There is no such instance or state, or it has not begun.
        UnknownVersion: Its version is not in this build.
    """
    old = _loaded(instances, process, key)
    new = put(process, old, state)
    instances.cancel_timers(process.name, key)
    at = process.version(old.version).definition.state(state)
    _set_timers(instances, old, at.timers)
    if entry and at.entry is not None:
        _wake(instances, old, ENTRY)
    elif orjson.loads(new.deferred):
        _wake(instances, old, DEFERRED)
    instances.save(new)
    called = " with its entry" if entry and at.entry is not None else ""
    return _done(old, f"set-state {old.state} -> {state}{called}", by)


def put(process: Process, old: Instance, state: str) -> Instance:
    """The instance in that state.

    Raises:
        ConfigurationError: There is no such state, or it has not begun.
        UnknownVersion: Its version is not in this build.
    """
    version = process.version(old.version)
    if not old.state:
        raise ConfigurationError(
            f"the instance {old.key} of {process.name} has not begun: events wait for the one that starts it"
        )
    if not version.has(state):
        there = ", ".join(each.name for each in version.definition.states)
        raise ConfigurationError(f"{process.name} v{old.version} has no state {state!r}; it has: {there}")
    ended = version.definition.state(state).final
    return old._replace(state=state, ended=ended, deferred=b"[]" if ended else old.deferred)


class Moved(NamedTuple):
    """An instance as it is now, and what was done to it."""

    instance: Instance
    done: Intervention


def move(instances: Instances, process: Process, key: str, to: int, by: Hand) -> Moved | str:
    """Move an instance to a version, or say why it stays as it is; nothing, if it has ended or been moved meanwhile.

    Timers that the new state has too, by name, keep the time they are due; the others of the new state are set from
    now on. `entry` is not called, but for a saga in another state: the service sends the command of that one.
    """
    old = instances.load(process.name, key)
    if old is None or old.ended or old.version >= to:
        return ""
    new = moved(process, old, to)
    if isinstance(new, str):
        return new
    if new.state:
        rules = {rule.name: rule for rule in process.versions[to].definition.state(new.state).timers}
        there = [timer.name for timer in instances.timers(process.name, key)]
        instances.cancel_timers(process.name, key, [name for name in there if name not in rules])
        _set_timers(instances, old, (rule for name, rule in rules.items() if name not in there))
        if process.versions[to].made.process_enters_moved and new.state != old.state:
            _wake(instances, old, ENTRY)
        elif orjson.loads(new.deferred):
            _wake(instances, old, DEFERRED)
    instances.save(new)
    return Moved(new, _done(old, f"migrate v{old.version} {old.state} -> v{to} {new.state}", by))


def moved(process: Process, old: Instance, to: int) -> Instance | str:
    """What an instance becomes in version `to`, or why it cannot; nothing is stored."""
    target = process.version(to)
    route = path(process, old.version, to)
    if old.version not in process.versions or route is None:
        return f"no @migrate leads from v{old.version} to v{to}"
    unknown = sorted({type_ for type_, _ in orjson.loads(old.deferred)} - set(target.classes))
    if unknown:
        return f"events wait in it that v{to} does not take: {', '.join(unknown)}"
    if not old.state:
        return old._replace(version=to)
    state: str = old.state
    try:
        instance: Any = process.versions[old.version].made.model_validate_json(old.data)
    except ValidationError as error:
        return f"its fields are not those of v{old.version}: {_fields(error)}"
    begun = old.version
    for version in route:
        made = process.versions[version].made
        function = made.moves()[begun]
        try:
            instance, at = function(instance, state)
        except Reject as error:
            return error.reason
        except ValidationError as error:
            return f"{function.__name__} raised ValidationError: {_fields(error)}"
        except Exception as error:  # its message may quote what the instance holds
            return f"{function.__name__} raised {type(error).__name__}"
        if not isinstance(instance, made) or not made.has(at):
            return f"{function.__name__} returned something other than a {made.__name__} and a state of v{version}"
        state, begun = at.name, version
    ended = target.definition.state(state).final
    deferred = b"[]" if ended else old.deferred
    data = instance.model_dump_json().encode()
    return old._replace(version=to, state=state, data=data, ended=ended, deferred=deferred)


def path(process: Process, begun: int, to: int) -> list[int] | None:
    """The versions to go through, the last of them `to`; the fewest there are. None: there is no way."""
    ways: dict[int, list[int]] = {begun: []}
    for version in sorted(process.versions):
        if version > begun:
            moves: Mapping[int, Any] = process.versions[version].made.moves()
            found = [ways[each] for each in moves if each in ways]
            if found:
                ways[version] = [*min(found, key=len), version]
    return ways.get(to)


def _loaded(instances: Instances, process: Process, key: str) -> Instance:
    old = instances.load(process.name, key)
    if old is None:
        raise ConfigurationError(
            f"there is no instance {key} of {process.name}; `choreo instances list` counts those there are"
        )
    return old


def _done(old: Instance, what: str, by: Hand) -> Intervention:
    return Intervention(old.process, old.key, what, by.who, by.why, old.correlation_id)


def _set_timers(instances: Instances, old: Instance, rules: Iterable[TimerRule]) -> None:
    now_ms = instances.now_ms
    for rule in rules:
        instances.set_timer(_timer(old, rule.name, now_ms + round(rule.delay_s * 1000)))


def _wake(instances: Instances, old: Instance, name: str) -> None:
    instances.set_timer(_timer(old, name, instances.now_ms))


def _timer(old: Instance, name: str, due_ms: int) -> Timer:
    # A revision is changed once: what is set anew has a token of its own.
    token = key_digest(old.process, old.key, str(old.revision), name).hex()
    return Timer(old.process, old.key, name, token, due_ms, 1, old.correlation_id)


def _fields(error: ValidationError) -> str:
    return ", ".join(".".join(map(str, each["loc"])) or "all of it" for each in error.errors())
