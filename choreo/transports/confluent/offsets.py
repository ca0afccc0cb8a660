"""What a group has committed, through librdkafka."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.record import TopicPartition
from choreo.transports.confluent.admin import AGAIN_S, ONCE_S, ConfluentAdmin, passing
from choreo.transports.confluent.client import Consumer, KafkaException, made, partition_of, place
from choreo.transports.confluent.settings import CONSUMER_DEFAULTS


class CommittedOffsets:
    """Asked by a consumer that never joins the group.

    Not by librdkafka's admin client, which ends the process by SIGSEGV if the broker it asks does not coordinate the
    group any more (librdkafka 2.16, its issue 5040). Nor by the member, which is to poll meanwhile.
    """

    def __init__(self, group: str, arguments: Mapping[str, Any], admin: ConfluentAdmin, *, timeout_s: float) -> None:
        self._arguments = {**CONSUMER_DEFAULTS, **arguments, "group.id": group}
        self._admin = admin
        self._timeout_s = timeout_s
        self._consumer: Consumer | None = None
        self._one = asyncio.Lock()

    async def of(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int | None]:
        """Offset by partition, None where there never was one.

        Under `require_stable`: while a transaction holds another offset for one, its end is waited for. An error,
        also one of a partition alone, is never taken for "nothing committed".
        """
        until_s = time.monotonic() + self._timeout_s
        while True:
            try:
                async with self._one:
                    return await self._admin.call(lambda: self._ask(partitions))
            except KafkaException as error:
                if passing(error) is None or time.monotonic() > until_s:
                    raise
            await asyncio.sleep(AGAIN_S)

    def close(self) -> None:
        """Disconnect, in the background."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._admin.soon(consumer.close)

    def _ask(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int | None]:
        if self._consumer is None:
            self._consumer = made(Consumer, self._arguments)
        self._consumer.poll(0)  # has its log told; it receives nothing
        # CONSUMER_DEFAULTS' isolation level, read_committed, is what makes it require stable offsets.
        answers = self._consumer.committed([place(each) for each in partitions], min(ONCE_S, self._timeout_s))
        for answer in answers:
            if answer.error is not None:
                raise KafkaException(answer.error)
        return {partition_of(each): None if each.offset < 0 else int(each.offset) for each in answers}
