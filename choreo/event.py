"""Domain events as frozen pydantic models; what a class says about itself is checked when it is defined.

This module knows nothing of brokers or envelopes. There is no registry: two services may hold two classes of
one type and version, each with the fields it needs.
"""

import re
from typing import Any, ClassVar, Self

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from choreo.errors import DeclarationError, DecodeError

_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/-]*(\.[A-Za-z0-9_/-]+)*\Z")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")  # Kafka's own rule for a topic's name
_NOT_FINITE = (b"NaN", b"Infinity")


class Event(BaseModel):
    """A fact of the domain, named in the past tense.

        class OrderPlaced(Event, type="order.placed", version=1, topic="orders", key="order_id"):
            order_id: UUID

    Class arguments:
        type: CloudEvents `type`, dotted words; stable for ever.
        version: Integer >= 1; raised when a consumer of the old shape could not read the new one.
        topic: Logical topic; `App(topics=...)` may map it to another name.
        key: Field whose value becomes the record key: events of one key in one topic partition are handled
            in order. `None`: no key, no order.

    A class without arguments is a mere mix-in of fields. Unknown fields of incoming events are ignored.

    Raises:
        DeclarationError: When the class is defined; the message says what to write instead.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        hide_input_in_errors=True,  # a validation error goes to logs; the payload must not
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )

    event_type: ClassVar[str] = ""
    event_version: ClassVar[int] = 0
    event_topic: ClassVar[str] = ""
    event_key: ClassVar[str | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take choreo's class arguments; pydantic gets the rest (`frozen=`, `title=`, ...)."""
        for name in ("type", "version", "topic", "key"):
            kwargs.pop(name, None)
        super().__init_subclass__(**kwargs)

    @classmethod
    def __pydantic_init_subclass__(
        cls,
        type: str | None = None,
        version: int = 1,
        topic: str | None = None,
        key: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if type is None and topic is None:
            if key is not None:
                raise DeclarationError(f"{cls.__name__}: key={key!r} is given without type= and topic=")
            return
        _check(cls, type, version, topic, key)
        assert type is not None
        assert topic is not None
        cls.event_type, cls.event_version, cls.event_topic, cls.event_key = type, version, topic, key

    def record_key(self) -> bytes | None:
        """The record key as UTF-8 bytes: the text of the key field, or None."""
        if self.event_key is None:
            return None
        value = getattr(self, self.event_key)
        return None if value is None else str(value).encode()

    def payload(self) -> bytes:
        """The event's data as one JSON object, UTF-8."""
        return self.model_dump_json(by_alias=True).encode()

    @classmethod
    def from_payload(cls, value: bytes) -> Self:
        """Validate one JSON object.

        Raises:
            DecodeError: `not_json` or `invalid_data`, naming the fields that are wrong, never their values.
        """
        if any(word in value for word in _NOT_FINITE):
            # pydantic takes NaN and Infinity as numbers, and RFC 8259 knows neither. orjson refuses them.
            try:
                orjson.loads(value)
            except ValueError:
                raise DecodeError("not_json", "the value holds NaN or Infinity, which JSON has not") from None
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            raise _decode_error(cls, error) from None


class Command(Event):
    """An instruction to one service, named in the imperative: `ReserveStock`. Declared like an `Event`."""


def _check(cls: type[Event], type_: object, version: object, topic: object, key: str | None) -> None:
    name = cls.__name__
    if type_ is None or topic is None:
        missing = "type" if type_ is None else "topic"
        example = f'class {name}(Event, type="order.placed", version=1, topic="orders", key="order_id")'
        raise DeclarationError(f"{name}: the class argument {missing}= is missing; write for example {example}")
    if not isinstance(type_, str) or not _TYPE.match(type_):
        raise DeclarationError(
            f'{name}: type={type_!r} is no event type; use dotted words of letters, digits, "-" and "_", '
            'such as "order.placed"'
        )
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise DeclarationError(f"{name}: version={version!r} must be a whole number from 1 up")
    if not isinstance(topic, str) or not _TOPIC.match(topic) or topic in (".", ".."):
        raise DeclarationError(
            f'{name}: topic={topic!r} is no topic name; Kafka allows 1 to 249 letters, digits, ".", "_" and "-"'
        )
    if key is not None and key not in cls.model_fields:
        fields = ", ".join(cls.model_fields) or "none"
        raise DeclarationError(f"{name}: key={key!r} names no field of the event; its fields are: {fields}")


def _decode_error(cls: type[Event], error: ValidationError) -> DecodeError:
    found = error.errors(include_input=False, include_url=False)
    if found[0]["type"] == "json_invalid":
        # The parser's own words hold a position and never a piece of the value.
        return DecodeError("not_json", f"the value cannot be read as JSON: {found[0]['ctx']['error']}")
    # Of a location only the model's own names are told: a key of a dict is the sender's data.
    known = cls.model_fields
    where = ", ".join(
        f"{item['loc'][0] if item['loc'] and item['loc'][0] in known else '(value)'} {item['type']}"
        for item in found[:5]
    )
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return DecodeError("invalid_data", f"no valid {cls.event_type} v{cls.event_version}: {where}{more}")
