"""Asking Kafka how far the log goes, from several threads."""

from __future__ import annotations

import threading
import time

import pytest

from tests.inprocess import NO_KAFKA
from versolog.projections import tail
from versolog.projections.tail import Ends
from versolog.schemas.errors import Unavailable

SOON_S = 10.0


def test_who_waits_for_an_answer_is_answered_though_another_has_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gives up has a new client made; what was asked of the old one would never be answered once nobody held it."""
    ends = Ends(dict(NO_KAFKA))
    place = ("commits", 0)
    said: list[str] = []

    def ask() -> None:
        with pytest.raises(Unavailable, match="did not say how far") as told:
            ends.last([place])
        said.append(told.value.detail)

    monkeypatch.setattr(tail, "REQUEST_TIMEOUT_S", 2.0)
    patient = threading.Thread(target=ask, daemon=True)
    patient.start()
    time.sleep(0.5)
    monkeypatch.setattr(tail, "REQUEST_TIMEOUT_S", 0.2)
    ask()
    assert patient.is_alive()
    patient.join(SOON_S)
    assert len(said) == 2
    assert "said nothing" not in said[1]
