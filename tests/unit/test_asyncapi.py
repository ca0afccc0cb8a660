"""AsyncAPI documents of services: the rules no schema of AsyncAPI has, and what they say of declarations."""

import copy
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from choreo import App, Command, Event, Service
from choreo.errors import ConfigurationError
from choreo.flow.asyncapi import asyncapi
from tests.asyncapi_rules import broken_rules, resolved
from tests.handlers_apps import NAMES, handlers_app

Document = dict[str, Any]


class Leaf(BaseModel):
    kind: Literal["leaf"]


class Branch(BaseModel):
    kind: Literal["branch"]
    left: "Node"


Node = Annotated[Leaf | Branch, Field(discriminator="kind")]


class Grown(Event, type="wood/tree.grown", version=3, topic="woods", key="id"):
    """A tree has grown."""

    id: str
    root: Node


class Felled(Event, type="tree.felled", topic="yard"):
    trunk: "Felled | None" = None


class Saw(Command, type="tree.saw", topic="yard"):
    discriminator: str


def woods() -> App:
    """What is hard to describe: a slash in a type, schemas that hold themselves, two classes of one event."""
    forester, mill = Service("forester", group="foresters"), Service("mill")

    class Part(BaseModel):
        weight: int

    class OtherGrown(Event, type="wood/tree.grown", version=3, topic="woods"):
        id: str
        leaf: Part | None = None

    @forester.handler(Grown, Saw)
    def fell(event: Grown | Saw) -> Felled | None: ...

    @mill.handler(Felled)
    def saw(felled: Felled) -> tuple[Saw, ...]:
        return ()

    @mill.handler(OtherGrown)
    def look(grown: OtherGrown) -> None: ...

    @mill.handler(Grown)
    def look_again(grown: Grown) -> Felled:
        return Felled()

    return App(forester, mill, topics={"yard": "saw-yard"})


def documents() -> list[tuple[str, Document]]:
    """Of every service of handlers/ and of the woods, named."""
    apps = [*((name, handlers_app(name)) for name in NAMES), ("woods", woods())]
    return [(f"{name}.{each}", asyncapi(app.capability(), each)) for name, app in apps for each in app.services]


@pytest.mark.parametrize(("name", "document"), documents(), ids=lambda each: each if isinstance(each, str) else "")
def test_document_keeps_the_rules(name: str, document: Document) -> None:
    """Every reference leads somewhere, messages are of their channel, emits are operations."""
    assert broken_rules(document) == [], name


def _dangle(document: Document) -> None:
    del document["components"]["schemas"]["Felled"]


def _leave_defs(document: Document) -> None:
    document["components"]["schemas"]["Saw"]["$defs"] = {}


def _stray(document: Document) -> None:
    document["operations"]["receive:fell:woods"]["messages"] = [
        {"$ref": "#/channels/saw-yard/messages/tree.saw.v1.receive"}
    ]


def _emit_nowhere(document: Document) -> None:
    document["operations"]["receive:fell:woods"]["x-choreo-emits"][0]["operation"] = "send:gone"


def _contradict(document: Document) -> None:
    document["operations"]["receive:fell:woods"]["x-choreo-emits"][0]["when"] = "always"


@pytest.mark.parametrize("spoil", [_dangle, _leave_defs, _stray, _emit_nowhere, _contradict])
def test_rules_find_what_is_broken(spoil: Callable[[Document], None]) -> None:
    """A rule that finds nothing proves nothing."""
    document = copy.deepcopy(asyncapi(woods().capability(), "forester"))
    assert broken_rules(document) == []
    spoil(document)
    assert broken_rules(document)


def test_document_says_what_is_declared() -> None:
    """Actions from the service's own view, Kafka's bindings, the correlation id, and how many events follow."""
    document = asyncapi(woods().capability(), "forester")
    assert document["asyncapi"] == "3.1.0"
    assert sorted(document["channels"]) == ["saw-yard", "woods"]
    assert document["channels"]["saw-yard"]["bindings"]["kafka"] == {"topic": "saw-yard", "bindingVersion": "0.5.0"}
    fell = document["operations"]["receive:fell:woods"]
    assert fell["action"] == "receive"
    assert fell["bindings"]["kafka"]["groupId"]["enum"] == ["foresters"]
    assert fell["x-choreo-emits"] == [
        {"operation": "send:tree.felled.v1:saw-yard", "when": "sometimes", "min": 0, "max": 1}
    ]
    message = resolved(document, fell["messages"][0]["$ref"])
    assert message["name"] == "wood/tree.grown"
    assert message["correlationId"]["location"] == "$message.header#/ce_correlationid"
    assert message["bindings"]["kafka"]["key"]["description"] == "The text of the field id."
    assert document["operations"]["send:tree.felled.v1:saw-yard"]["action"] == "send"


def test_schema_is_of_the_direction() -> None:
    """What is sent is what is written, what is received is what is accepted."""
    document = asyncapi(handlers_app("order_fulfilment").capability(), "payments")
    schemas = document["components"]["schemas"]
    amounts = [schemas[name]["properties"]["amount"] for name in ("Money", "Money-2")]
    assert sorted("anyOf" in each for each in amounts) == [False, True]


def test_two_classes_of_one_event_are_both_named() -> None:
    """What the service accepts is what both accept."""
    document = asyncapi(woods().capability(), "mill")
    payload = document["channels"]["woods"]["messages"]["wood/tree.grown.v3.receive"]["payload"]
    assert [each["$ref"].split("/")[-1] for each in payload["allOf"]] == ["Grown", "OtherGrown"]


def test_discriminator_is_a_name() -> None:
    """OpenAPI's object is not AsyncAPI's, and a field of that name is left alone."""
    document = asyncapi(woods().capability(), "forester")
    schemas = document["components"]["schemas"]
    assert schemas["Grown"]["properties"]["root"]["discriminator"] == "kind"
    assert schemas["Saw"]["properties"]["discriminator"]["type"] == "string"


def test_version_changes_with_the_declaration_alone() -> None:
    """Equal declarations, equal documents."""
    document = asyncapi(woods().capability(), "mill")
    assert document == asyncapi(woods().capability(), "mill")
    assert document["info"]["version"] != asyncapi(woods().capability(), "forester")["info"]["version"]


def test_unknown_service_is_refused() -> None:
    """With the names there are."""
    with pytest.raises(ConfigurationError, match="no service 'sea'; there are: forester, mill"):
        asyncapi(woods().capability(), "sea")
