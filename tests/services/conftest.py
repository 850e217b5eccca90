"""A fake engine per module, with nothing scripted, counted or running when a test begins and ends."""

from collections.abc import Iterator

import pytest

from fakes import FakeHandle, start_fake


@pytest.fixture(scope="module")
def server() -> Iterator[FakeHandle]:
    with start_fake() as handle:
        yield handle


@pytest.fixture
def fake(server: FakeHandle) -> Iterator[FakeHandle]:
    server.reset_script()
    server.reset_stats()
    yield server
    server.wait(lambda stats: stats["active"] == 0)
