"""Tests. What they share says in full what it found wrong, as tests themselves do."""

import pytest

pytest.register_assert_rewrite("tests.cluster", "tests.history", "tests.traffic")
