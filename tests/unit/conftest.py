"""What unit tests of reading stand on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scribe import Scribe, codec
from versolog.projections.store import Store
from versolog.projections.views import View


@pytest.fixture
def scribe() -> Scribe:
    return Scribe()


@pytest.fixture
def view(tmp_path: Path) -> Iterator[View]:
    store = Store.open(tmp_path / "store", partition=0, codec=codec())
    yield View(store)
    store.close()
