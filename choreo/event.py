"""Domain events as frozen pydantic models; what a class says about itself is checked when it is defined.

This module knows nothing of brokers or envelopes. There is no registry: two services may hold two classes of
one type and version, each with the fields it needs.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Self, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from choreo.errors import DeclarationError, DecodeError
from choreo.exact import dumps_exactly, loads_exactly
from choreo.sensitive import is_sensitive, refuse_secret_types

_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/-]*(\.[A-Za-z0-9_/-]+)*\Z")
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}\Z")  # Kafka's own rule for a topic's name

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
"""From the data of one version to the data of the next."""
_Upcaster = TypeVar("_Upcaster", bound=Upcaster)


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
    event_upcasters: ClassVar[Mapping[int, Upcaster]] = MappingProxyType({})

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
        refuse_secret_types(cls)
        if type is None and topic is None:
            if key is not None:
                raise DeclarationError(f"{cls.__name__}: key={key!r} is given without type= and topic=")
            return
        _check(cls, type, version, topic, key)
        assert type is not None
        assert topic is not None
        cls.event_type, cls.event_version, cls.event_topic, cls.event_key = type, version, topic, key
        cls.event_upcasters = MappingProxyType({})  # a parent's lead to the parent's version

    @classmethod
    def upcast(cls, *, from_version: int) -> Callable[[_Upcaster], _Upcaster]:
        """Keep records of an old version readable by handlers of this class alone.

            @OrderPlaced.upcast(from_version=1)
            def _(data: dict[str, Any]) -> dict[str, Any]: ...

        The function takes the data of `from_version` and returns that of `from_version + 1`; several make a chain
        up to this class's version. It is called whenever an old record is read, a redelivery too: same data in,
        same data out. Numbers with a fraction come as Decimal, exactly as they were written.

        Raises:
            DeclarationError: `from_version` is none below the class's own, or has an upcaster already.
        """
        name = cls.__name__
        if not cls.event_type:
            raise DeclarationError(f"@{name}.upcast: {name} has no type, so there is no old version of it")
        if isinstance(from_version, bool) or not isinstance(from_version, int) or from_version < 1:
            raise DeclarationError(f"@{name}.upcast: from_version={from_version!r} must be a whole number from 1 up")
        if from_version >= cls.event_version:
            raise DeclarationError(
                f"@{name}.upcast: from_version={from_version} is not below {name}'s own version "
                f"{cls.event_version}; an upcaster belongs to the newer class"
            )

        def register(function: _Upcaster) -> _Upcaster:
            if not callable(function) or inspect.iscoroutinefunction(function):
                raise DeclarationError(f"@{name}.upcast decorates a plain function of the old data, not {function!r}")
            known = cls.event_upcasters.get(from_version)
            if known is not None:
                raise DeclarationError(
                    f"@{name}.upcast: {_named(known)} upcasts from version {from_version} already; keep one of them"
                )
            cls.event_upcasters = MappingProxyType({**cls.event_upcasters, from_version: function})
            return function

        return register

    @classmethod
    def check_upcasters(cls) -> None:
        """Called when the App is built, since upcasters are declared one by one.

        Raises:
            DeclarationError: A chain breaks off before it reaches the class's version.
        """
        oldest = min(cls.event_upcasters, default=cls.event_version)
        for step in range(oldest, cls.event_version):
            if step not in cls.event_upcasters:
                raise DeclarationError(
                    f"{cls.__name__}: version {oldest} of {cls.event_type} is upcast, and nothing leads from "
                    f"version {step} to {step + 1}; add @{cls.__name__}.upcast(from_version={step})"
                )

    @classmethod
    def upcasts_from(cls, version: int) -> bool:
        """Whether data of an older version can be brought to this class's."""
        steps = range(version, cls.event_version)
        return version in cls.event_upcasters and all(step in cls.event_upcasters for step in steps)

    def record_key(self) -> bytes | None:
        """The record key as UTF-8 bytes: the text of the key field, or None."""
        if self.event_key is None:
            return None
        value = getattr(self, self.event_key)
        return None if value is None else str(value).encode()

    def payload(self) -> bytes:
        """The event's data as one JSON object, UTF-8."""
        return self.__pydantic_serializer__.to_json(self, by_alias=True)  # `model_dump_json` makes a str of it first

    @classmethod
    def from_payload(cls, value: bytes) -> Self:
        """Validate one JSON object.

        Raises:
            DecodeError: `not_json` or `invalid_data`, naming the fields that are wrong, never their values.
        """
        # Its letter first: to look for one is a tenth of looking for a word.
        if (value.find(b"N") >= 0 and b"NaN" in value) or (value.find(b"I") >= 0 and b"Infinity" in value):
            # pydantic takes NaN and Infinity as numbers, and RFC 8259 knows neither. orjson refuses them.
            try:
                orjson.loads(value)
            except ValueError:
                raise DecodeError("not_json", "the value holds NaN or Infinity, which JSON has not") from None
        try:
            found: Self = cls.__pydantic_validator__.validate_json(value)  # `model_validate_json` is one call more
            return found
        except ValidationError as error:
            raise _decode_error(cls, error) from None

    @classmethod
    def from_old_payload(cls, value: bytes, version: int) -> Self:
        """Upcast one JSON object of an older version, `upcasts_from(version)` being true, and validate it.

        Raises:
            DecodeError: `not_json`; `upcast_failed`, naming the upcaster and never what it said; `invalid_data`.
        """
        data = loads_exactly(value)
        for step in range(version, cls.event_version):
            upcaster = cls.event_upcasters[step]
            what = f"the upcaster {_named(upcaster)} of {cls.event_type} from version {step}"
            try:
                data = upcaster(data)
            except Exception as error:
                raise DecodeError("upcast_failed", f"{what} raised {type(error).__name__}") from None
            if not isinstance(data, dict):
                raise DecodeError("upcast_failed", f"{what} returned a {type(data).__name__} and no dict")
        try:
            upcast = dumps_exactly(data)
        except (TypeError, ValueError) as error:
            raise DecodeError(
                "upcast_failed",
                f"what was upcast from version {version} of {cls.event_type} is no JSON: {type(error).__name__}",
            ) from None
        try:
            return cls.from_payload(upcast)
        except DecodeError as error:
            raise DecodeError(error.reason, f"{error.detail}, upcast from version {version}") from None


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
    if key is not None and is_sensitive(cls, key):
        raise DeclarationError(
            f"{name}: key={key!r} is Sensitive, and the key of a record is in every trace and listing; take another "
            "field, or a digest of this one"
        )


def _named(function: Upcaster) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


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
