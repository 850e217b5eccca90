"""One gateway in front of two fake engines, shared by the tests of a module that need nothing special."""

from collections.abc import Iterator

import pytest

from fakes import FakeHandle, start_fake
from gateways import GatewayHandle, config, start_gateway


@pytest.fixture(scope="session")
def fakes() -> Iterator[tuple[FakeHandle, FakeHandle]]:
    with start_fake("--model", "m") as a, start_fake("--model", "m") as b:
        yield a, b


@pytest.fixture
def fake(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[FakeHandle]:
    """The first fake engine, with nothing scripted and nothing counted, before and after; so is the second."""
    _reset(fakes)
    yield fakes[0]
    _reset(fakes)


def _reset(fakes: tuple[FakeHandle, FakeHandle]) -> None:
    for engine in fakes:
        engine.reset_script()
        engine.health(200)
        engine.reset_stats()


@pytest.fixture(scope="module")
def gateway(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """A gateway in front of the first fake engine only."""
    with start_gateway(config(fakes[0].url)) as handle:
        yield handle


@pytest.fixture(scope="module")
def pair(fakes: tuple[FakeHandle, FakeHandle]) -> Iterator[GatewayHandle]:
    """A gateway in front of both."""
    with start_gateway(config(*(fake.url for fake in fakes))) as handle:
        yield handle
