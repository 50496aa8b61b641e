"""The application against its own OpenAPI document, by requests that schemathesis makes up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.inprocess import Served
from versolog.projections.http.answer import NDJSON
from versolog.projections.http.application import TAGS

EXAMPLES_MAX = 15
# Left out: `positive_data_acceptance`. A schema can't say what a cursor, a reference or a condition must look like.


@schemathesis.serializer(NDJSON)
def ndjson(context: Any, value: Any) -> bytes:
    """A batch as it is; schemathesis knows no such type."""
    return str(value).encode()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    running = Served(tmp_path_factory.mktemp("openapi"))
    with httpx.Client(base_url=running.url) as client:
        for number in range(3):
            row = {"n": number}
            client.put("/v1/groups/UA/tables/flights/rows/k1", json=row, headers={"idempotency-key": f"t-{number}"})
        client.put("/v1/groups/UA/tags/before", json={"at": 1})
    yield running
    running.stop()


@pytest.mark.parametrize("tag", TAGS)
def test_every_answer_is_as_documented(served: Served, tag: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    found: Any = schema.get_all_operations()
    operations = [operation.ok() for operation in found]
    of_tag = [operation for operation in operations if tag in (operation.tags or ())]
    assert of_tag
    for operation in of_tag:
        _call(operation)


def _call(operation: Any) -> None:
    @given(case=operation.as_strategy())
    @settings(max_examples=EXAMPLES_MAX, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    def call(case: Any) -> None:
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    call()
