"""The port of a broker: a log of topics and partitions, and members of consumer groups that read it."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from choreo.access import Access
from choreo.record import ProducerRecord, Record, TopicPartition

Start = Literal["earliest", "latest"] | int
"""Where a group without a committed offset begins: the ends of the log, or a time in ms since the epoch."""


class Peer(NamedTuple):
    """Whom a transport's client talks to and as whom, for its spans; None where there is no one answer."""

    client_id: str | None = None
    address: str | None = None
    port: int | None = None
    cluster_id: str | None = None


class TopicSpec(NamedTuple):
    """A topic as it should be; `partitions` >= 1, `config` in the broker's own words."""

    name: str
    partitions: int
    replication: int = 1
    config: tuple[tuple[str, str], ...] = ()


@runtime_checkable
class Guarded(Protocol):
    """A transport whose brokers may grant some rights and not others."""

    principal: str
    """Whom the brokers take us for."""

    async def lacking(self, wanted: Sequence[Access]) -> Sequence[Access]:
        """What of `wanted` is not granted, as far as the brokers tell."""


class Assignment(Protocol):
    """Told by a consumer when partitions come and go. Both are awaited before the consumer goes on."""

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """These are ours now. They are paused and have no position until `seek` and `resume`."""

    async def revoked(self, partitions: Sequence[TopicPartition], *, lost: bool) -> None:
        """These are being taken; `lost`: somebody else may own them already."""


class Consumer(Protocol):
    """One member of one consumer group."""

    member: str
    """Unique to this member; the owner of the leases it takes."""

    @property
    def joined(self) -> bool:
        """Whether the group has taken it in, with partitions or without."""

    async def fetch(self, *, records_max: int, wait_s: float) -> Sequence[Record]:
        """Up to `records_max` records of resumed partitions, ascending within each, after at most `wait_s`."""

    async def position(self, partition: TopicPartition, start: Start) -> int:
        """The committed offset, or where `start` points if nothing was ever committed.

        Raises:
            TransportError: It cannot be read. That is never taken for "nothing committed".
        """

    def seek(self, partition: TopicPartition, offset: int) -> None:
        """Fetch from `offset` on and let the partition flow."""

    def drained(self, partition: TopicPartition) -> bool:
        """Whether, when last looked, the log of it held nothing that `fetch` has not returned; False if unknown."""

    async def ends(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        """The next offset to be written of each, as it is now: for measuring how far behind the group is.

        Raises:
            TransportError: They cannot be read.
        """

    def pause(self, partition: TopicPartition) -> None:
        """Fetch nothing of it until `resume`."""

    def resume(self, partition: TopicPartition) -> None:
        """Fetch of it again from where it stood."""

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit next-to-read offsets of partitions that are ours."""

    async def close(self) -> None:
        """Give up what is still assigned and leave the group."""


class Transport(Protocol):
    """A log: topics of partitions, consumer groups, ordered within a partition."""

    name: str
    system: str
    """`messaging.system` of its spans."""
    peer: Peer
    """Complete once it is open."""

    async def open(self) -> None:
        """Connect, or raise TransportError saying what to check."""

    async def consumer(self, group: str, topics: Sequence[str], assignment: Assignment) -> Consumer:
        """Join `group` for `topics`, which exist."""

    async def send(self, records: Sequence[ProducerRecord]) -> None:
        """Append all, in order a key, and return when every one is acknowledged.

        Raises:
            TransportError: Some may be on the log, some not; sending the same again is safe.
        """

    async def topics(self, names: Collection[str] | None = None) -> Mapping[str, TopicSpec]:
        """The topics that exist, by name; of `names` only, where given: a cluster may have thousands."""

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create those that are missing; an existing one is left as it is."""

    async def widen(self, partitions: Mapping[str, int]) -> None:
        """Give each topic so many partitions; a topic that has as many, or more, is left as it is."""

    async def scan(self, topics: Sequence[str], *, since_ms: int, key: bytes | None = None) -> Sequence[Record]:
        """Every record of `topics` from `since_ms` on, up to the end as it is now: for looking, not for consuming.

        With a `key` only the partition of each topic is read that the key chooses, as Java's client does.
        """

    async def close(self) -> None:
        """Flush and disconnect."""
