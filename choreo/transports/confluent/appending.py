"""The records of a transaction, and whose they were if it is refused.

No record has a delivery report: each would take Python's lock from the event loop once. librdkafka counts those that
failed and refuses to commit; only then is the transaction made again with reports, which tell whose record it was.
"""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from choreo.errors import TransportError
from choreo.ports import LogCommit
from choreo.record import TopicPartition
from choreo.transports.confluent.client import TOO_LARGE, KafkaError, Producer
from choreo.transports.confluent.delivery import failed_delivery, failure_of, produce
from choreo.transports.confluent.succession import Succession

log = logging.getLogger(__name__)

_Failed = dict[tuple[TopicPartition, int], KafkaError]
"""By the part and the index of the record in it."""


class Refused(Exception):
    """Nothing was committed, on account of these parts; the others may be tried without them."""

    def __init__(self, parts: Mapping[TopicPartition, Exception]) -> None:
        super().__init__(", ".join(map(str, parts)))
        self.parts = parts


class Appending:
    """Hands the records of parts over, on the thread of the transactions.

    Args:
        producers: Told to make smaller batches, if a topic takes none of that size.
    """

    def __init__(self, group: str, principal: str, producers: Succession) -> None:
        self._group = group
        self._principal = principal
        self._producers = producers
        self._reports = False

    def append(self, producer: Producer, parts: Mapping[TopicPartition, LogCommit], until_s: float) -> None:
        """All of them, acknowledged or found to have failed.

        Raises:
            Refused: Some failed, and it is known whose they are; or, of no parts, it is worth another try.
            TransportError: It is not known by what they failed, or they were not acknowledged in time.
        """
        failed: _Failed = {}
        for partition, part in parts.items():
            for index, record in enumerate(part.records):
                report = _report(failed, (partition, index)) if self._reports else None
                while True:
                    try:
                        produce(producer, record, report)
                        break
                    except BufferError:
                        producer.poll(0.05)
                    except Exception as error:
                        raise Refused({partition: failure_of(record, index, error, self._principal)}) from error
        left = producer.flush(max(0.1, until_s - time.monotonic()))
        if failed:
            self._blame(parts, failed)
        if left:
            raise TransportError(
                f"{left} records of a transaction were not acknowledged in time; nothing is committed"
            )

    def ask(self, error: KafkaError, *, ending: bool) -> bool:
        """Whether to make the transaction that ended with `error` again, now with reports.

        Only if it was certainly aborted: when it was `ending`, if librdkafka had counted records that failed, for
        then it asks no broker.
        """
        aborted = error.txn_requires_abort() and (not ending or error.code() == KafkaError._INCONSISTENT)
        if self._reports or not aborted:
            return False
        self._reports = True
        return True

    def committed(self) -> None:
        """No reports any more."""
        self._reports = False

    def _blame(self, parts: Mapping[TopicPartition, LogCommit], failed: _Failed) -> None:
        """Say whose parts are to blame; what failed only because the transaction had, is not."""
        oversized = {key: error for key, error in failed.items() if error.code() in TOO_LARGE}
        if len(oversized) > 1 and self._producers.shrink():
            log.warning("group %s: a batch was too large; its transactions send smaller ones now", self._group)
            raise Refused({})
        blamed = oversized or {
            key: error
            for key, error in failed.items()
            if not error.txn_requires_abort()
            and error.code() not in (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)
        }
        if not blamed:
            (partition, index), error = next(iter(failed.items()))
            raise failed_delivery(parts[partition].records[index], index, error, self._principal)
        refused: dict[TopicPartition, Exception] = {}
        for (partition, index), error in blamed.items():
            refused.setdefault(
                partition, failed_delivery(parts[partition].records[index], index, error, self._principal)
            )
        raise Refused(refused)


def _report(failed: _Failed, key: tuple[TopicPartition, int]) -> Callable[[KafkaError | None, Any], None]:
    def report(error: KafkaError | None, _: Any) -> None:
        if error is not None:
            failed[key] = error

    return report
