"""The sequencer makes shares of what stands in the log, and of nothing else."""

from __future__ import annotations

from typing import Any, cast

import pytest
from confluent_kafka import Message

from versolog.schemas.codec import Codec, frame
from versolog.schemas.errors import BrokenLog, Malformed, Misconfigured, Unavailable, VersologError
from versolog.schemas.topics import Topics
from versolog.streams.carrier import Carrier
from versolog.streams.sequencer import _Sequencing
from versolog.streams.shares import Allotment
from versolog.streams.stalls import Stalls

NO_KAFKA = {"bootstrap.servers": "127.0.0.1:1"}
PARTITIONS = 2


class Read:
    """What of a message is looked at."""

    def offset(self) -> int:
        return 7

    def value(self) -> bytes:
        return frame(1, b"whatever")


class Registry:
    def __init__(self, answer: VersologError) -> None:
        self.answer = answer

    def text_of(self, schema_id: int) -> str:
        raise self.answer

    def id_of(self, schema: Any) -> int:
        raise NotImplementedError


def shares(answer: VersologError) -> list[tuple[int, bytes]]:
    """What is given out of a record whose schema the registry is asked for."""
    sequencing = _Sequencing(
        NO_KAFKA, Topics(), Codec(Registry(answer)), PARTITIONS, Carrier(NO_KAFKA, "test"), 1, Stalls()
    )
    sequencing._allotment = Allotment(PARTITIONS)
    return sequencing._shares(cast(Message, Read()))


def test_what_nobody_can_read_is_given_to_partition_0() -> None:
    ((partition, _),) = shares(Malformed("nobody registered it"))
    assert partition == 0


@pytest.mark.parametrize("kind", [Unavailable, Misconfigured, BrokenLog])
def test_what_fails_here_and_now_is_given_to_nobody(kind: type[VersologError]) -> None:
    """Another time, or another sequencer, would read it."""
    with pytest.raises(kind):
        shares(kind("not just now"))
