"""A process as a Mermaid state diagram, drawn from its definition."""

from collections.abc import Iterator

from choreo.core.definition import Definition, State, TimerRule, Way


def state_diagram(definition: Definition) -> str:
    """The text of the diagram: states, and on each way what it is taken on and what it emits."""
    ids = {state.name: f"s{number}" for number, state in enumerate(definition.states)}
    lines = ["stateDiagram-v2", f"    %% {_safe(definition.name)} v{definition.version}"]
    lines += [f'    state "{_safe(name)}" as {id_}' for name, id_ in ids.items()]
    for rule in definition.starts:
        lines.append(f"    [*] --> {ids[rule.to or '']}: {_said(rule.event, rule)}")
    for state in definition.states:
        lines += [f"    {each}" for each in _of_state(state, ids)]
    return "\n".join(lines) + "\n"


def _of_state(state: State, ids: dict[str, str]) -> Iterator[str]:
    here = ids[state.name]
    for rule in state.rules:
        on = rule.event if rule.guard is None else f"{rule.event} [{rule.guard}]"
        yield f"{here} --> {ids[rule.to] if rule.to else here}: {_said(on, rule)}"
    for timer in state.timers:
        yield f"{here} --> {ids[timer.to] if timer.to else here}: {_said(_when(timer), timer)}"
    if state.entry_emits:
        yield f"{here}: {_safe('emits ' + ', '.join(state.entry_emits))}"
    if state.final:
        yield f"{here} --> [*]"


def _when(timer: TimerRule) -> str:
    if not timer.repeats:
        return f"after {_duration(timer.delay_s)}"
    often = "" if timer.at_most is None else f", at most {timer.at_most} times"
    return f"every {_duration(timer.delay_s)}{often}"


def _said(on: str, way: Way) -> str:
    return _safe(on + (f" / {', '.join(way.emits)}" if way.emits else ""))


def _duration(delay_s: float) -> str:
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if delay_s >= length_s and delay_s % length_s == 0:
            return f"{delay_s / length_s:g} {unit}"
    return f"{delay_s:g} s"


def _safe(text: str) -> str:
    """What can end no label and begin no markup; a colon would."""
    return "".join(each if each.isalnum() or each in " ._-/*,()[]" else f"#{ord(each)};" for each in text)
