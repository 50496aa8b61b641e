"""Fixtures and settings of all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings

import tests.built  # noqa: F401 - first, and before anything of versolog
from tests.cluster import Cluster
from versolog.testing import embedded_broker

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("full", parent=settings.get_profile("default"), max_examples=2_000, stateful_step_count=80)
settings.load_profile("default")


class RealBroker(Protocol):
    """A real Apache Kafka, however it was started."""

    @property
    def bootstrap(self) -> str: ...
    @property
    def pid(self) -> int | None: ...
    def kill(self) -> None: ...
    def start(self) -> object: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker", choices=("embedded", "docker"), default="embedded",
        help="where Kafka runs: as a process that versolog starts, or in a container of the official image",
    )  # fmt: skip


@pytest.fixture(scope="session")
def new_broker(request: pytest.FixtureRequest) -> Callable[[], AbstractContextManager[RealBroker]]:
    """Starts a Kafka of the kind that the tests were asked to run on. Without one they fail."""
    if request.config.getoption("--broker") == "embedded":
        return embedded_broker
    from tests.container import container_broker

    return container_broker


@pytest.fixture(scope="session")
def broker(new_broker: Callable[[], AbstractContextManager[RealBroker]]) -> Iterator[RealBroker]:
    """One Kafka for all tests that don't hurt it; each has topics of its own."""
    with new_broker() as running:
        yield running


@pytest.fixture
def own_broker(new_broker: Callable[[], AbstractContextManager[RealBroker]]) -> Iterator[RealBroker]:
    """A Kafka that the test may kill."""
    with new_broker() as running:
        yield running


@pytest.fixture
def new_cluster(tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters, `new_cluster(broker, partitions=…)`; their workers are gone at the end."""
    made: list[Cluster] = []

    def make(broker: RealBroker, **options: Any) -> Cluster:
        made.append(Cluster(broker.bootstrap, tmp_path / f"cluster-{len(made)}", **options))
        made[-1].make_topics()
        return made[-1]

    yield make
    for cluster in made:
        cluster.kill()


@pytest.fixture
def cluster(new_cluster: Callable[..., Cluster], broker: RealBroker) -> Cluster:
    """Two partitions on the shared Kafka, and no worker yet."""
    return new_cluster(broker)
