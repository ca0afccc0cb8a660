"""The producers of one transactional id, one after another: each one's start ends what its predecessor left open."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any
from uuid import uuid4

from choreo.errors import TransportError
from choreo.transports.confluent.calling import CallThread, Hung, until
from choreo.transports.confluent.client import KafkaException, Producer, made
from choreo.transports.confluent.settings import PRODUCER_DEFAULTS, TRANSACTION_BATCHES, TRANSACTION_DEFAULTS
from choreo.transports.kafka.fencing import NAMESPACE, transactions_of

log = logging.getLogger(__name__)

TRANSACTION_S = 10.0
"""After so long a broker ends a transaction whose producer is gone; readers under read_committed wait for it."""

RENEW_S = 3.0
"""For so long a producer is not suspected of going by a coordinator that is no more."""

ABORT_S = 30.0


class Succession:
    """One producer at a time, and the thread for its calls, which block.

    Any error ends a producer; it is discarded and never used on.

    Args:
        group: Whose transactions these are.
        arguments: librdkafka's, over PRODUCER_DEFAULTS and TRANSACTION_DEFAULTS.
        losses: How often a connection to a broker has failed until now.
        timeout_s: Deadline of a start.

    Attributes:
        begun: There is a transaction whose end is not known.
    """

    def __init__(
        self, group: str, arguments: Mapping[str, Any], losses: Callable[[], int], *, timeout_s: float
    ) -> None:
        self.begun = False
        self._group = group
        self._arguments = {
            **PRODUCER_DEFAULTS,
            **TRANSACTION_DEFAULTS,
            **arguments,
            "transactional.id": f"{transactions_of(NAMESPACE, group)}{uuid4()}",
            "transaction.timeout.ms": int(TRANSACTION_S * 1000),
            "message.timeout.ms": int(TRANSACTION_S * 1000),
        }
        self._losses = losses
        self._timeout_s = timeout_s
        self._producer: Producer | None = None
        self._made_s = 0.0
        self._losses_then = 0  # when the producer was made
        self._batches = 0  # of TRANSACTION_BATCHES
        self._thread = self._new_thread()

    # ---- on the loop

    async def ready(self, within_s: float | None = None) -> None:
        """There is a producer, and no transaction of its predecessors is open; `within_s`: `timeout_s`."""
        await self.run(self.current, self._timeout_s if within_s is None else within_s)

    async def run(self, function: Callable[[], object], within_s: float) -> None:
        """On the thread. After a broker has died `send_offsets_to_transaction` may hang, whatever its timeout (2.16).

        Then thread and producer are left to themselves: the successor's start ends what was begun.

        Raises:
            Hung: It did; it is not known what it has done.
        """
        try:
            await self._thread.run(function, within_s)
        except Hung:
            log.warning("group %s: librdkafka does not come back from a transaction; begun anew", self._group)
            self._producer = None
            if not self._thread.ended:  # else nobody would end another one
                self._thread.end()
                self._thread = self._new_thread()
            raise

    def end(self) -> None:
        """Discard the producer behind what is still running, then the thread; does not wait."""
        self._thread.end(lambda: self.discard(self._producer))

    def _new_thread(self) -> CallThread:
        return CallThread(f"choreo-kafka-transactions-{self._group}")

    # ---- on the thread

    def current(self) -> Producer:
        """The producer; made anew after an error, and when a broker was lost."""
        if self._producer is not None and self.suspect():
            self.discard(self._producer)
        if self._producer is None:
            thread = self._thread
            losses = self._losses()
            producer: Producer = made(Producer, {**self._arguments, **TRANSACTION_BATCHES[self._batches]})
            until(time.monotonic() + self._timeout_s, producer.init_transactions)
            if thread is not self._thread:
                raise TransportError("given up meanwhile")
            self._producer, self.begun = producer, False
            self._made_s, self._losses_then = time.monotonic(), losses
        return self._producer

    def suspect(self) -> bool:
        """Whether a broker was lost since the producer was made.

        If it coordinated the group, and metadata name it no more, `send_offsets_to_transaction` waits for it for good
        (librdkafka 2.16, its issues 5511, 5456); a producer made after that asks for the coordinator anew.
        """
        return self._losses() != self._losses_then and time.monotonic() > self._made_s + RENEW_S

    def check(self, producer: Producer) -> None:
        """TransportError if it was given up meanwhile: it hung, and nobody waits for what it does now."""
        if self._producer is not producer:
            raise TransportError("given up meanwhile")

    def begin(self, producer: Producer) -> None:
        """Begin a transaction of it."""
        self.check(producer)
        self.begun = True
        producer.begin_transaction()

    def ended(self, producer: Producer) -> None:
        """Its transaction was committed."""
        if self._producer is producer:  # else `begun` speaks of a successor's
            self.begun = False

    def shrink(self) -> bool:
        """Have successors make smaller batches; False if there are none smaller."""
        if self._batches + 1 == len(TRANSACTION_BATCHES):
            return False
        self._batches += 1
        return True

    def discard(self, producer: Producer | None) -> None:
        """Never used on after an error; its successor's start ends what it had begun, if its own abort does not."""
        if self._producer is producer:
            self._producer = None
        if producer is not None:
            box = [producer]
            del producer
            threading.Thread(target=_abort_and_drop, args=(box,), daemon=True).start()


def _abort_and_drop(box: list[Producer]) -> None:
    """Disconnecting may take a while, so on a thread of its own.

    Aborted first: librdkafka 2.16 may die of an assertion (rdkafka_txnmgr.c, `txn_req_cnt > 0`) when a producer is
    destroyed while a request of its transaction is under way, and an abort waits for these.
    """
    with suppress(KafkaException):
        box[0].abort_transaction(ABORT_S)
    box[0].purge(in_queue=True, in_flight=True, blocking=False)
    box.clear()
