"""docs/ARCHITECTURE.md has a line for every module."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
ROOMS = ("", "schemas", "streams", "projections")
PARTS = [
    part
    for room in ROOMS
    for part in sorted((ROOT / "versolog" / room).iterdir())
    if (part.suffix == ".py" and part.name != "__init__.py")
    or ((part / "__init__.py").exists() and part.name not in ROOMS)
]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: str(part.relative_to(ROOT / "versolog")))
def test_every_module_is_named(part: Path) -> None:
    assert f"`{part.name}{'/' if part.is_dir() else ''}`" in TEXT or f"/{part.name}`" in TEXT


def test_it_looks_at_modules() -> None:
    assert len(PARTS) > 50
