"""A partition rests between batches by how much its worker has to do."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from versolog.streams.pace import (
    FEW_WAITING,
    MANY_WAITING,
    REST_AWAITED_MAX_S,
    REST_COMMITS,
    REST_LONGEST_S,
    REST_MAX_S,
    Pace,
)

COMMIT_S = 0.01


def test_one_that_comes_alone_waits_for_nobody() -> None:
    pace = Pace()
    with ExitStack() as entered:
        for partition in range(4):
            entered.enter_context(pace.kept(partition))
        pace.begin(0)
        assert pace.rest_s(0, COMMIT_S, 1, awaited=0) == 0


def test_it_rests_longer_the_more_partitions_are_at_work() -> None:
    pace, rests = Pace(), []
    with ExitStack() as entered:
        for partition in range(4):
            entered.enter_context(pace.kept(partition))
        for partition in range(4):
            pace.begin(partition)
            rests.append(pace.rest_s(0, COMMIT_S, 1, awaited=0))
        assert rests == pytest.approx([part / 3 * REST_COMMITS * COMMIT_S for part in range(4)])
        pace.end(2)
        assert pace.rest_s(0, COMMIT_S, 1, awaited=0) == pytest.approx(rests[2])


def test_a_partition_that_ended_is_not_counted() -> None:
    pace = Pace()
    with pace.kept(0):
        with pace.kept(1), pace.kept(2):
            pace.begin(1)
            assert pace.rest_s(0, COMMIT_S, 1, awaited=0) == pytest.approx(REST_COMMITS * COMMIT_S / 2)
        assert pace.rest_s(0, COMMIT_S, 1, awaited=0) == 0


def test_many_at_hand_are_reason_enough() -> None:
    pace = Pace()
    with pace.kept(0):
        assert pace.rest_s(0, COMMIT_S, MANY_WAITING + 1, awaited=0) == pytest.approx(REST_COMMITS * COMMIT_S)
        assert pace.rest_s(0, COMMIT_S, 10 * MANY_WAITING, awaited=0) == pytest.approx(REST_COMMITS * COMMIT_S)


def test_a_commit_that_took_seconds_is_a_reason_to_rest_for_longer_only_where_many_come_meanwhile() -> None:
    pace = Pace()
    with pace.kept(0), pace.kept(1):
        pace.begin(1)
        assert pace.rest_s(0, 5.0, 0, awaited=0) == pytest.approx(REST_MAX_S * (1 - 1 / MANY_WAITING))
        assert pace.rest_s(0, 5.0, FEW_WAITING, awaited=0) == pytest.approx(2 * REST_MAX_S)
        assert pace.rest_s(0, 5.0, 10 * MANY_WAITING, awaited=0) == REST_LONGEST_S


def test_where_most_are_awaited_the_rest_is_short_and_one_among_many_changes_nothing() -> None:
    pace, many = Pace(), 10 * MANY_WAITING
    with pace.kept(0):
        assert pace.rest_s(0, 5.0, many, awaited=many) == REST_AWAITED_MAX_S
        assert pace.rest_s(0, 0.001, many, awaited=many) == pytest.approx(REST_COMMITS * 0.001)
        assert pace.rest_s(0, 5.0, many, awaited=many // 2) == REST_LONGEST_S
