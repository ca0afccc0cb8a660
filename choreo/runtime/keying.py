"""What the core is told of some work: the keys it is known by, its lane and its queue, and how it is tried again."""

from collections.abc import Sequence

from choreo.binding import BoundHandler
from choreo.core.emission import (
    business_digest,
    fingerprint,
    is_derived,
    key_digest,
    queue_digest,
    replay_digest,
    retry_digest,
)
from choreo.core.retry import Delayed, RetryPolicy
from choreo.core.units import Unit
from choreo.record import TopicPartition
from choreo.runtime.replaying import DECODE
from choreo.runtime.work import Work
from choreo.service import Service


class Units:
    """Makes units of the core, for one service.

    Args:
        handlers: Bound handlers of the service.
    """

    def __init__(self, service: Service, handlers: Sequence[BoundHandler]) -> None:
        self._name = service.name
        self._retry = service.retry
        self._constants = {bound.handler.name: _Constants(bound) for bound in handlers}

    def of(self, partition: TopicPartition, work: Work) -> Unit:
        """The unit of some work on a record of a partition."""
        bound, envelope = work.bound, work.envelope
        if bound is None or envelope is None or work.replay is not None or work.retried is not None:
            return self._unusual(partition, work)
        _, _, offset, key, value, _, _ = work.record
        id_, _, _, _, _, _, _, correlation_id, causation_id, _, _, _ = envelope
        of, error = self._constants[bound.handler.name], work.error
        return Unit(
            partition,
            offset,
            offset if key is None else key,
            of.name,
            self._own_key(work),
            fingerprint(value or b""),
            correlation_id,
            causation_id is not None and is_derived(id_, causation_id),
            of.transacts,
            of.retry,
            0,
            of.delayable,
            of.breaker,
            None if error is None else error.reason,
            queue_digest(self._name, of.name, key) if of.ordered and key is not None else None,
            False,
            work,
        )

    def _unusual(self, partition: TopicPartition, work: Work) -> Unit:
        """The unit of a replay, of a delayed retry, or of a record that no handler can be given."""
        record, envelope, bound, name = work.record, work.envelope, work.bound, work.handler
        retry = bound.handler.retry if bound else self._retry
        if work.replay is not None or work.retried is not None:
            # What failed may have been charged: the provider has to know it again.
            base = work.replay.base if work.replay else ""
            work.outside_key = replay_digest(self._name, name, base) if base else self._own_key(work)
        before = work.retried
        about = work.replay.parked if work.replay is not None and before is None else ""
        ordered = bound is not None and bound.handler.order is not None
        queue = None
        if record.key is not None and (ordered or about):
            queue = queue_digest(self._name, name, record.key)
        return Unit(
            partition,
            record.offset,
            record.offset if record.key is None else record.key,
            name,
            self.key(work),
            fingerprint(record.value or b""),
            correlation_id=envelope.correlationid if envelope else "",
            derived=envelope is not None and is_derived(envelope.id, envelope.causationid),
            transacts=bool(bound and bound.transactions),
            retry=retry.in_place if isinstance(retry, Delayed) else retry,
            breaker=bound.handler.breaker if bound else None,
            attempts_before=before.attempts if before else 0,
            delayable=isinstance(retry, Delayed) and retry.next_s(before.number if before else 0) is not None,
            poison=about if about in ("drop", "closing") else work.error.reason if work.error else None,
            queue=queue,
            redriven=bool(about),
            work=work,
        )

    def key(self, work: Work) -> bytes:
        """The idempotency key of one unit of work: the event's, or the replay's, or that of a retry of either."""
        if work.replay is None and work.retried is None:
            return self._own_key(work)
        key = self._first_key(work)
        return key if work.retried is None else retry_digest(key, work.retried.number)

    def _first_key(self, work: Work) -> bytes:
        """The key of the first attempt: the event's, or the replay's."""
        if work.replay is None or work.replay.key == "event":
            return self._own_key(work)
        return replay_digest(self._name, work.handler, work.replay.id)

    def _own_key(self, work: Work) -> bytes:
        service, bound, envelope = self._name, work.bound, work.envelope
        if bound is None or envelope is None:
            record = work.record
            coordinates = f"{record.topic}/{record.partition}/{record.offset}/{record.timestamp_ms}"
            return key_digest(service, DECODE, "", coordinates)
        field_ = bound.handler.idempotency_key
        if field_ is not None and work.event is not None:
            return business_digest(service, bound.handler.name, str(getattr(work.event, field_)))
        return key_digest(service, bound.handler.name, envelope.source, envelope.id)


class _Constants:
    """What all units of a handler have in common, those that come by its delay topics or queues aside."""

    __slots__ = ("breaker", "delayable", "name", "ordered", "retry", "transacts")

    def __init__(self, bound: BoundHandler) -> None:
        handler = bound.handler
        retry = handler.retry
        self.name = handler.name
        self.transacts = bool(bound.transactions)
        self.retry: RetryPolicy = retry.in_place if isinstance(retry, Delayed) else retry
        self.delayable = isinstance(retry, Delayed) and retry.next_s(0) is not None
        self.breaker = handler.breaker
        self.ordered = handler.order is not None
