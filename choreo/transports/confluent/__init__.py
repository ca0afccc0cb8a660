"""Apache Kafka through librdkafka (confluent-kafka), an extra."""

from choreo.transports.confluent.transport import ConfluentConsumer, ConfluentTransactions, ConfluentTransport

__all__ = ["ConfluentConsumer", "ConfluentTransactions", "ConfluentTransport"]
