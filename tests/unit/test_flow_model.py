"""The declared flow as data: what it says of declarations, and that files of it can be put together."""

from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any

import pytest

from choreo import App, Command, Event, Flow, RetryPolicy, Service
from choreo.errors import ConfigurationError
from choreo.flow.model import Capability, DeclaredHandler, EventRef, from_json, merge, to_json
from handlers.order_fulfilment.app import app as order_app


class Asked(Event, type="t.asked", version=2, topic="asks", key="who"):
    """Somebody wants tea."""

    who: str
    price: Decimal


class Poured(Event, type="t.poured", topic="pours", key="who"):
    who: str


class Spilt(Event, type="t.spilt", topic="pours", key="who"):
    who: str


class Wipe(Command, type="t.wipe", topic="orders"):
    where: str


def emitting(annotation: Any, emits: Any = None) -> dict[str, tuple[int, int | None]]:
    """The counts of a handler with this return annotation, by type."""
    return {emit.type: (emit.min, emit.max) for emit in emitter(annotation, emits).emits}


def emitter(annotation: Any, emits: Any = None) -> DeclaredHandler:
    """A handler with this return annotation."""
    service = Service("kitchen")

    def pour(asked: Asked) -> Any: ...

    pour.__annotations__["return"] = annotation
    service.handler(Asked, emits=emits)(pour)
    (handler,) = App(service).capability().services[0].handlers
    return handler


@pytest.mark.parametrize(
    ("annotation", "counts"),
    [
        (None, {}),
        (Poured, {"t.poured": (1, 1)}),
        (Poured | None, {"t.poured": (0, 1)}),
        (Poured | Spilt, {"t.poured": (0, 1), "t.spilt": (0, 1)}),
        (list[Poured], {"t.poured": (0, None)}),
        (list[Poured | Spilt] | None, {"t.poured": (0, None), "t.spilt": (0, None)}),
        (AsyncIterator[Poured], {"t.poured": (0, None)}),
        (Iterator[Poured | None], {"t.poured": (0, None)}),
        (tuple[Poured, Spilt | None], {"t.poured": (1, 1), "t.spilt": (0, 1)}),
        (tuple[Poured, Poured], {"t.poured": (2, 2)}),
        (tuple[Poured, ...], {"t.poured": (0, None)}),
        (tuple[Poured, Spilt] | Poured, {"t.poured": (1, 1), "t.spilt": (0, 1)}),
        (Poured | list[Poured], {"t.poured": (0, None)}),
        (Annotated[Poured, "a note"], {"t.poured": (1, 1)}),
    ],
)
def test_return_annotation_says_how_many(annotation: Any, counts: dict[str, tuple[int, int | None]]) -> None:
    """At least and at most, read from the annotation alone."""
    assert emitting(annotation) == counts


@pytest.mark.parametrize(
    ("annotation", "least"),
    [
        (None, 0),
        (Poured, 1),
        (Poured | Spilt, 1),
        (Poured | None, 0),
        (tuple[Poured, Spilt | None], 1),
        (tuple[Poured, Spilt] | Poured, 1),
        (tuple[Poured, ...], 0),
        (list[Poured], 0),
        (AsyncIterator[Poured], 0),
        (Annotated[Poured | Spilt, "a note"], 1),
    ],
)
def test_return_annotation_says_how_many_in_all(annotation: Any, least: int) -> None:
    """Of `A | B` either may be missing, not both."""
    assert emitter(annotation).emits_min == least


def test_emits_without_an_annotation_have_no_bound() -> None:
    """`emits=` names classes and no numbers."""
    assert emitting(Any, emits=[Poured]) == {"t.poured": (0, None)}
    assert emitter(Any, emits=[Poured]).emits_min == 0


def tea(**mapped: str) -> App:
    """A small app with a setting of each kind."""
    kitchen, bell = Service("kitchen", group="old-kitchen", retry=RetryPolicy(attempts_max=2)), Service("bell")

    @kitchen.handler(Asked, name="brew", idempotency_key="who")
    def pour(asked: Asked) -> Poured | None: ...

    @bell.handler(Poured, Wipe)
    def ring(event: Poured | Wipe) -> None: ...

    flow = Flow("tea", starts=Asked, ends=Poured, deadline=timedelta(minutes=1))
    return App(kitchen, bell, flows=[flow], topics=mapped)


def test_capability_says_what_is_declared() -> None:
    """Names, groups, keys and limits as they were given, in order of name."""
    capability = tea(pours="kitchen-pours").capability()
    bell, kitchen = capability.services
    assert (bell.name, kitchen.name, kitchen.group, kitchen.source) == ("bell", "kitchen", "old-kitchen", "/kitchen")
    (brew,) = kitchen.handlers
    assert (brew.name, brew.idempotency_key, brew.attempts_max) == ("brew", "who", 2)
    assert brew.consumes == (EventRef(type="t.asked", version=2, topic="asks"),)
    assert brew.emits[0].topic == "kitchen-pours"
    assert kitchen.dead_letter_topic == "kitchen.dlq"
    assert [(each.name, each.kind, each.key, each.direction) for each in bell.events] == [
        ("Poured", "event", "who", "receive"),
        ("Wipe", "command", None, "receive"),
    ]
    (asked,) = (each for each in kitchen.events if each.direction == "receive")
    assert asked.doc == "Somebody wants tea."
    assert capability.flows[0].deadline_s == 60.0


def test_schema_is_the_one_of_its_direction() -> None:
    """A Decimal is written as text and read from a number too."""
    service = Service("echo")

    @service.handler(Asked)
    def again(asked: Asked) -> Asked:
        return asked

    received, sent = App(service).capability().services[0].events
    assert received.direction == "receive"
    assert "anyOf" in received.json_schema["properties"]["price"]
    assert sent.json_schema["properties"]["price"]["type"] == "string"


def test_versions_that_are_upcast_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the handlers of that class, and by nobody who only sends it."""
    monkeypatch.setattr(Asked, "event_upcasters", {1: dict}, raising=False)
    service = Service("echo")

    @service.handler(Asked)
    def again(asked: Asked) -> Asked:
        return asked

    (echo,) = App(service).capability().services
    assert [each.upcasts_from for each in echo.events] == [(1,), ()]
    assert echo.reads_versions(echo.handlers[0], "t.asked") == {1, 2}


def test_prefix_of_an_environment_is_not_in_the_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is built in one environment is true in all."""
    plain = to_json(tea().capability())
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", "staging.")
    assert to_json(tea().capability()) == plain


def test_file_reads_back_as_it_was_written() -> None:
    """Also a real flow's, and twice the same text."""
    text = to_json(order_app.capability())
    assert from_json(text, "orders.json") == order_app.capability()
    assert to_json(from_json(text, "orders.json")) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "no capability file: Invalid JSON"),
        ("[]", "no capability file"),
        ('{"format": 2, "services": []}', "its format is not 1"),
        ('{"services": [{"name": "a"}]}', "services.0.group: Field required"),
    ],
)
def test_wrong_file_is_named_with_its_reason(text: str, said: str) -> None:
    """The name of the file, the place in it, and what to do."""
    with pytest.raises(ConfigurationError, match=r"^a\.json") as caught:
        from_json(text, "a.json")
    assert said in str(caught.value)


def test_flow_across_repositories_is_put_together_from_files() -> None:
    """Each file has its service; what is in both is there once."""
    whole = tea().capability()
    parts = {"a.json": whole.of("kitchen"), "b.json": whole.of("bell"), "c.json": whole.of("bell")}
    assert merge(parts) == whole


def test_clashing_declarations_are_named() -> None:
    """One service, two releases: nobody can say which is meant."""
    other = tea(asks="asks-v2").capability()
    with pytest.raises(ConfigurationError, match=r"service 'kitchen' in a\.json and in b\.json; flow 'tea'"):
        merge({"a.json": tea().capability(), "b.json": other})


def test_unknown_service_is_named() -> None:
    """With those there are."""
    with pytest.raises(ConfigurationError, match="no service 'cellar'; there are: bell, kitchen"):
        tea().capability().of("cellar")


def test_unknown_fields_of_a_file_are_ignored() -> None:
    """A newer choreo may say more without breaking who reads it."""
    assert from_json('{"format": 1, "services": [], "sagas": []}', "a.json") == Capability(services=())
