"""Every error choreo raises, in one tree.

    ChoreoError
    ├── DeclarationError     stop         wrong at import or when the App is built; says what to write instead
    ├── ConfigurationError   stop         wrong broker, store, topic or setting; found before anything is consumed
    ├── DecodeError          dead_letter  a record that is no readable event; never retried
    ├── Reject               dead_letter  raised by handlers: this event can never succeed
    ├── UndeclaredEmission   dead_letter  a handler returned what its annotation does not declare
    ├── RetryLater           retry        raised by handlers: try again after `delay_s`
    ├── TransportError       retry        the broker did not do what was asked
    │   └── RecordTooLarge   retry        one record is larger than its topic takes
    ├── StoreError           retry        the idempotency store did not do what was asked
    ├── UnknownVersion       wait         this build does not know the version of a process's instance
    └── LeaseLost            drop         a newer owner has the partition: every result of ours is dropped

Each class says what becomes of the event it befalls (`disposition`), so that the core consults a table and
not a chain of isinstance. What is to `wait` is tried again as often as need be, and no attempt is counted. Any
other exception out of a handler is treated as `retry`.
"""

from typing import ClassVar, Literal

Disposition = Literal["stop", "dead_letter", "retry", "wait", "drop"]


class ChoreoError(Exception):
    """Root of the tree; catch it to catch whatever choreo raises."""

    disposition: ClassVar[Disposition] = "stop"


class DeclarationError(ChoreoError):
    """An event, handler, service, flow or app is declared wrongly; the message says what to write instead."""


class ConfigurationError(ChoreoError):
    """Settings, topics or the pair of transport and store cannot work; nothing has been consumed yet."""


class DecodeError(ChoreoError):
    """A record is no readable event.

    Args:
        reason: A stable word for programs, such as `not_json`; it goes into the dead letter's headers.
        detail: A sentence for people. It never quotes the payload, which may hold secrets.
    """

    disposition = "dead_letter"

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Reject(ChoreoError):
    """Raised by a handler: this event can never succeed, dead-letter it now.

    Args:
        reason: Goes into the dead letter's headers and into logs as it is; put no secrets in it.
    """

    disposition = "dead_letter"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class UndeclaredEmission(ChoreoError):
    """A handler returned something its return annotation does not declare."""

    disposition = "dead_letter"


class RetryLater(ChoreoError):
    """Raised by a handler: deliver this event again after `delay_s` seconds (> 0). It counts as an attempt."""

    disposition = "retry"

    def __init__(self, delay_s: float) -> None:
        super().__init__(f"retry in {delay_s} s")
        self.delay_s = delay_s


class TransportError(ChoreoError):
    """The broker failed, refused or did not answer in time."""

    disposition = "retry"


class RecordTooLarge(TransportError):
    """A record handed to `Transport.send` is larger than its topic takes; `index` is its place in that call."""

    def __init__(self, message: str, *, index: int) -> None:
        super().__init__(message)
        self.index = index


class StoreError(ChoreoError):
    """The idempotency store failed, refused or did not answer in time."""

    disposition = "retry"


class UnknownVersion(ChoreoError):
    """An instance is of a version, or in a state, that this build's process does not have.

    Its event waits, without an attempt counted, until a build that knows it takes over, or the instance is moved.
    """

    disposition = "wait"
    delay_s: ClassVar[float] = 5.0
    """Until it is looked at again here."""


class LeaseLost(ChoreoError):
    """A newer epoch owns the partition; nothing this owner did since may be committed."""

    disposition = "drop"
