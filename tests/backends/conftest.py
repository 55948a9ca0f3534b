"""A provider on loopback for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.backends.provider import Provider


@pytest.fixture
def provider() -> Iterator[Provider]:
    found = Provider()
    yield found
    found.close()
