"""Kafka's errors as ours: what can be tried again, what has to be configured, what was too large."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TypeVar

from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException
from confluent_kafka.admin import ListOffsetsResultInfo

from versolog.schemas.errors import Misconfigured, TooLarge, Unavailable, VersologError

MAKE_TOPICS = "run `versolog up`, or make them with `versolog topics create`"

ANSWER_TIMEOUT_S = 30.0
"""Longer than anything is asked for."""

Answer = TypeVar("Answer")

_NEEDS_CONFIGURING = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: f"topics are missing: {MAKE_TOPICS}",
    KafkaError._UNKNOWN_TOPIC: f"topics are missing: {MAKE_TOPICS}",
    KafkaError._UNKNOWN_PARTITION: f"the topic, or this partition of it, is missing: {MAKE_TOPICS}",
    KafkaError._AUTHENTICATION: "the broker refused the login: check sasl.* and security.protocol",
    KafkaError.SASL_AUTHENTICATION_FAILED: "the broker refused the login: check sasl.* and security.protocol",
    KafkaError._SSL: "the TLS handshake failed: check ssl.* and security.protocol",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "the login may not do this to the topic: check the ACLs",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "the login may not do this to the cluster: check the ACLs",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "the login may not use this transactional.id: check the ACLs",
    KafkaError._FENCED: "another producer took over with the same transactional_id; give each its own",
    KafkaError.POLICY_VIOLATION: "a policy of the cluster forbids it",
    KafkaError.INVALID_REPLICATION_FACTOR: "the cluster has too few brokers for this replication factor",
    KafkaError.INVALID_CONFIG: "the cluster refuses a setting",
    KafkaError._INVALID_ARG: "a Kafka setting is wrong",
}
PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError._TRANSPORT,
}
"""What Kafka answers while it starts, or while a leader moves: asked again soon, it will answer otherwise."""
_TOO_LARGE = {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE}


def is_fatal(error: KafkaError) -> bool:
    """Whether the client that says so can't go on. What it says after the first time is not marked as fatal any more."""
    return error.fatal() or error.code() == KafkaError._FATAL


def from_kafka(error: KafkaError | KafkaException, doing: str) -> VersologError:
    """The typed error for a failure of Kafka's while `doing`, a phrase such as "reading topic x"."""
    cause = error.args[0] if isinstance(error, KafkaException) else error
    said = f"{doing}: {cause.str() or cause.name()} ({cause.name()})"
    if cause.code() in _TOO_LARGE:
        return TooLarge(said, kafka=cause.name())
    advice = _NEEDS_CONFIGURING.get(cause.code())
    if advice is not None:
        return Misconfigured(f"{said}; {advice}", kafka=cause.name())
    return Unavailable(f"{said}; sending the same again is safe", kafka=cause.name())


def answered(answer: Future[Answer]) -> Answer:
    """What an AdminClient was asked for, waited for. Raises KafkaException.

    Keep the client until then: what was asked of one that nobody holds any more is never answered.
    """
    try:
        return answer.result(ANSWER_TIMEOUT_S)
    except TimeoutError as error:
        late = KafkaError(KafkaError._TIMED_OUT, f"Kafka's client said nothing for {ANSWER_TIMEOUT_S:g} s")
        raise KafkaException(late) from error


def listed_offset(answer: Future[ListOffsetsResultInfo]) -> int:
    """The offset that `AdminClient.list_offsets` was asked for, waited for; -1 where no record has the time asked for.

    Raises KafkaException, also where the broker that leads the partition did not answer: librdkafka forgets that error
    when it joins the answers of several brokers, and says that the offset is OFFSET_INVALID, and that all is well.
    """
    offset = answered(answer).offset
    if offset == OFFSET_INVALID:
        raise KafkaException(KafkaError(KafkaError._TRANSPORT, "the partition's leader did not answer"))
    return offset
