"""Names of topics, and the place of a group: the partition that any Kafka client's default partitioner would choose."""

from __future__ import annotations

import pytest

from versolog.schemas.topics import TopicIds, Topics, murmur2, partition_of


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("a-little-bit-longer-string", -1486304829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        ("abc", 479470107),
    ],
)
def test_murmur2_is_that_of_the_java_client(key: str, signed: int) -> None:
    """The vectors of `UtilsTest.testMurmur2` in kafka-clients."""
    assert murmur2(key.encode()) == signed % 2**32


@pytest.mark.parametrize(
    ("key", "unsigned"),
    [
        ("kafka", 0xD067CF64),
        ("giberish123456789", 0x8F552B0C),
        ("1234", 0x9FC97B14),
        ("234", 0xE7C009CA),
        ("34", 0x873930DA),
        ("4", 0x5A4B5CA1),
        ("PreAmbleWillBeRemoved,ThePrePartThatIs", 0x78424F1C),
        ("", 0x106E08D9),
    ],
)
def test_murmur2_is_that_of_librdkafka(key: str, unsigned: int) -> None:
    """The vectors of librdkafka's own unit test, with every length of the tail."""
    assert murmur2(key.encode()) == unsigned


def test_a_hash_with_the_sign_bit_gives_a_partition_that_exists() -> None:
    assert murmur2(b"21") >> 31 == 1
    assert partition_of("21", 8) == (-973932308 & 0x7FFFFFFF) % 8


def test_every_partition_is_used() -> None:
    placed = {partition_of(f"group-{number}", 8) for number in range(200)}
    assert placed == set(range(8))


def test_a_group_is_placed_by_its_utf_8() -> None:
    assert partition_of("Zürich", 64) == (murmur2("Zürich".encode()) & 0x7FFFFFFF) % 64


def test_topics_share_the_prefix() -> None:
    topics = Topics("shop-7.")
    assert (topics.transactions, topics.commits, topics.outcomes) == (
        "shop-7.transactions", "shop-7.commits", "shop-7.outcomes",
    )  # fmt: skip
    assert (topics.sequence, topics.votes, topics.schemas) == ("shop-7.sequence", "shop-7.votes", "shop-7.schemas")


def test_another_topic_under_the_same_name_is_another_log() -> None:
    ids = TopicIds(8, "cluster", "a", "b", "c")
    assert ids.identity == TopicIds(8, "cluster", "a", "b", "c").identity
    assert len({TopicIds(8, *log).identity for log in (("x", "a", "b", "c"), ("cluster", "a", "b", "d"))}) == 2
