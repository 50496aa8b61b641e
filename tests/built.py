"""Refuses to test compiled modules that were made of other sources than those that stand here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import hatch_build

ROOT = Path(__file__).parents[1]

if not os.environ.get("VERSOLOG_PURE") and hatch_build.found(ROOT) and not hatch_build.is_current(ROOT):
    raise pytest.UsageError("the compiled modules are not of these sources: run hatch_build.py, or set VERSOLOG_PURE=1")
