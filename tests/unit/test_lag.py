"""How far behind a copy is: never less than it may be."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from tests.inprocess import House
from versolog.projections.lag import Lag
from versolog.projections.tail import Ends
from versolog.schemas.topics import Topics

pytestmark = pytest.mark.anyio


class Log:
    """A log whose topics all end alike: what is shown of them, and what there is."""

    def __init__(self, stable: int, last: int) -> None:
        self._stable, self._last = stable, last

    def stable(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return dict.fromkeys(places, self._stable)

    def last(self, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
        return dict.fromkeys(places, self._last)


@pytest.mark.parametrize(
    ("stable", "last", "following", "missing"),
    [
        (0, 0, 0, 0),
        (0, 1, 0, 1),  # the first Kafka transaction is open, and may be acknowledged already
        (2, 2, 0, 1),  # it has ended, with a mark
        (2, 2, 1, 0),
        (2, 5, 1, 4),  # another one is open
        (2, 5, 5, 0),  # and was read meanwhile
    ],
)
async def test_records_of_open_transactions_count(
    tmp_path: Path, stable: int, last: int, following: int, missing: int
) -> None:
    house = House(tmp_path)
    try:
        for partition in house.partitions.values():
            fold = partition.store.fold()
            fold.offsets(commits=following, outcomes=following)
            fold.write()
        lag = Lag(house.partitions)
        with ThreadPoolExecutor(1) as threads:
            await lag._ask(cast(Ends, Log(stable, last)), Topics(), threads)
        assert [lag.offsets(number) for number in house.partitions] == [2 * missing] * len(house.partitions)
        assert (lag.staleness_s(0) is not None) == (missing == 0)
    finally:
        house.close()
