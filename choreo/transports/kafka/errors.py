"""What went wrong with Kafka and what to do next, in words that hold no payload and no secret."""

import socket
import ssl

from aiokafka import errors

from choreo.access import Access, Operation, lacking
from choreo.errors import TransportError
from choreo.record import TopicPartition


def reason(error: BaseException) -> str:
    """A class name, and text only where it comes from the broker, the network or aiokafka itself."""
    if isinstance(error, TransportError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, errors.UnknownError):  # 0.14 drops code and text of what it has no class for, such as 87
        return "refused for a reason aiokafka has no name for, e.g. no key in a compacted topic; see the broker's log"
    if isinstance(error, errors.KafkaError | OSError):
        text = str(error)
        name = type(error).__name__
        return text if text.startswith(name) else f"{name}: {text}"
    return type(error).__name__


def denied(error: BaseException, principal: str, operation: Operation, topic: str, group: str) -> str | None:
    """Who lacks which right, if that is the error; else None. `operation`: what was done with the topic."""
    match error:
        case errors.TopicAuthorizationFailedError():
            return lacking(principal, [Access("topic", topic, (operation,))])
        case errors.GroupAuthorizationFailedError():
            return lacking(principal, [Access("group", group, ("Read",))])
    return None


def next_step(error: BaseException, principal: str) -> str:
    """What to check if that is why a broker cannot be talked to."""
    match error:
        case ssl.SSLError():
            return "check CHOREO_KAFKA_SSL_CAFILE, and that the certificate names this host"
        case errors.AuthenticationFailedError() | errors.SaslAuthenticationFailed():
            return f"{principal} is not let in: check CHOREO_KAFKA_SASL_USERNAME and CHOREO_KAFKA_SASL_PASSWORD"
        case errors.UnsupportedSaslMechanismError():
            return "check CHOREO_KAFKA_SASL_MECHANISM"
        case errors.ClusterAuthorizationFailedError():
            return "grant this user what it needs on the cluster"
        case socket.gaierror():
            return "check the name: it does not resolve"
        case ConnectionRefusedError():
            return "is Kafka running there, and is that the port of its listener?"
        case TimeoutError():
            return "is a firewall between, or does the listener want TLS? (CHOREO_KAFKA_SECURITY_PROTOCOL)"
        case errors.KafkaConnectionError() | ConnectionError():
            return (
                "does the listener want TLS or SASL (CHOREO_KAFKA_SECURITY_PROTOCOL), or a certificate of the client "
                "(CHOREO_KAFKA_SSL_CERTFILE)?"
            )
        case _:
            return "check CHOREO_KAFKA_BOOTSTRAP_SERVERS and CHOREO_KAFKA_SECURITY_PROTOCOL"


def out_of_range(group: str, partition: TopicPartition, offset: int, *, first: int, end: int) -> TransportError:
    """The group stands where the log has nothing (any more): what was lost, and how to choose where to go on."""
    topic, number = partition
    reset = f"kafka-consumer-groups.sh --group {group} --topic {topic}:{number} --reset-offsets --execute"
    where = f"{partition}: group {group!r} is at offset {offset}, but the log "
    if offset < first:
        return TransportError(
            f"{where}begins at {first}: offsets {offset} to {first - 1} were deleted before the group handled "
            f"them. Stop the group, then go on without them: {reset} --to-earliest"
        )
    return TransportError(
        f"{where}ends at {end}: the topic was made anew or cut off. Stop the group, then handle what is there: "
        f"{reset} --to-earliest, or skip it: {reset} --to-latest"
    )
