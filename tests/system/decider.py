"""The other end of a producer: decides every transaction as committed, as a worker would say it, and keeps no state."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from versolog.schemas import codec
from versolog.schemas.codec import Codec, Record, unframe
from versolog.schemas.registry import TopicRegistry
from versolog.schemas.topics import Topics
from versolog.streams.chain import intent_hash

TRANSACTION, OUTCOMES = codec.schema("Transaction"), codec.schema("Outcomes")
REFUSED_TYPE = "Refuse"
"""A transaction of this event type is refused as a version mismatch."""


class Decider:
    """Reads `transactions` from its start and writes `outcomes`, a Kafka transaction for each batch of a partition."""

    def __init__(self, kafka: Mapping[str, Any], topics: Topics, partitions: int) -> None:
        self._topics = topics
        self._codec = Codec(TopicRegistry(kafka, topics))
        self._codec.id_of(OUTCOMES)
        self._consumer = Consumer(
            {
                **kafka,
                "group.id": "decider",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )
        self._consumer.assign([TopicPartition(topics.transactions, partition, 0) for partition in range(partitions)])
        self._producer = Producer({**kafka, "transactional.id": f"{topics.prefix}decider", "log_level": 0})
        self._producer.init_transactions(10)
        self._first: dict[str, Record] = {}
        self._versions: Counter[str] = Counter()
        self._stopping = threading.Event()
        self.may_decide = threading.Event()
        """Cleared, the transactions wait."""
        self.may_decide.set()
        self._thread = threading.Thread(target=self._run, name="decider")

    @contextmanager
    def running(self) -> Iterator[Decider]:
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            self._thread.join()
            self._consumer.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if not self.may_decide.wait(0.05):
                continue
            first = self._consumer.poll(0.05)
            if first is not None:
                self._decide([first, *self._consumer.consume(1_000, 0)])

    def _decide(self, messages: list[Message]) -> None:
        self._producer.begin_transaction()
        for partition in {message.partition() or 0 for message in messages}:
            results = [self._outcome(message) for message in messages if message.partition() == partition]
            value = self._codec.write(OUTCOMES, {"results": results, "checkpoint": None})
            self._producer.produce(self._topics.outcomes, value, partition=partition)
        self._producer.commit_transaction(10)

    def _outcome(self, message: Message) -> Record:
        _, record = self._codec.read(message.value(), TRANSACTION)
        asked = intent_hash(unframe(message.value())[1])
        first = self._first.get(record["id"])
        if first is not None and first["intent_hash"] == asked:
            return first
        refused = {"code": "id-reused", "detail": "decided before"} if first else {}
        if record["type"] == REFUSED_TYPE:
            refused = {"code": "version-mismatch", "detail": "not what was found", "facts": '{"expected":3,"found":4}'}
        parts = [] if refused else [self._part(part) for part in record["parts"]]
        outcome = {
            "transaction_id": record["id"], "intent_hash": asked, "transaction_offset": message.offset(),
            "committed_at": message.timestamp()[1], "outcome": "refused" if refused else "committed", "parts": parts,
            **refused,
        }  # fmt: skip
        self._first.setdefault(record["id"], outcome)
        return outcome

    def _part(self, part: Record) -> Record:
        self._versions[part["group"]] += 1
        version = self._versions[part["group"]]
        return {"group": part["group"], "branch": part["branch"], "version": version, "hash": bytes(31) + b"\x01"}
