"""Apache Kafka through aiokafka."""

from choreo.transports.kafka.transport import KafkaConsumer, KafkaTransactions, KafkaTransport

__all__ = ["KafkaConsumer", "KafkaTransactions", "KafkaTransport"]
