"""Whether every command and every end of a saga can be made of the events that came before it, on every way."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from choreo.errors import DeclarationError
from choreo.event import Event

if TYPE_CHECKING:
    from choreo.process.saga import Step


def check_fields(
    name: str,
    starts: type[Event],
    steps: "Sequence[Step]",
    completed: type[Event] | None,
    compensated: type[Event] | None,
) -> None:
    """What could not be made would be a dead letter, and its saga would stand where it is for ever.

    Raises:
        DeclarationError: A field is needed that no event before has.
    """
    known = set(starts.model_fields)
    for step in steps:
        if step.make is None:
            _check(name, step.command, known, "", "give Step(make=) a function of the data so far")
        late = f" when {step.command.__name__} has timed out without {step.ok.__name__}" if step.timeout else ""
        answered = known | set(step.ok.model_fields)
        if step.undo is not None:
            hint = "give the field a default, and let the service find it by the others"
            _check(name, step.undo, known if late else answered, late, hint)
        known = answered
    hint = "give the field a default"
    if completed is not None:
        _check(name, completed, known, "", hint)
    if compensated is not None:
        for when, have in _ways_back(starts, steps):
            _check(name, compensated, have, when, hint)


def _ways_back(starts: type[Event], steps: "Sequence[Step]") -> Iterator[tuple[str, set[str]]]:
    """What leads to a saga's being undone, and the fields that are there when it is."""
    known = set(starts.model_fields)
    for step in steps:
        for failure in step.failures:
            yield f" after {failure.__name__}", known | set(failure.model_fields)
        undone = set(step.undone.model_fields) if step.undone is not None else set[str]()
        if step.timeout is not None:
            yield f" after {step.command.__name__} has timed out", known | undone
        known |= set(step.ok.model_fields) | undone


def _check(saga: str, made: type[Event], have: set[str], when: str, hint: str) -> None:
    needed = [name for name, field in made.model_fields.items() if field.is_required()]
    if missing := ", ".join(name for name in needed if name not in have):
        raise DeclarationError(
            f"Saga({saga!r}): {made.__name__} needs {missing}, and no event before it has a field of that "
            f"name{when}; {hint}"
        )
