"""One server with the embedded model for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from runtime.server.launch import ServerProcess


@pytest.fixture(scope="session")
def server() -> Iterator[ServerProcess]:
    server = ServerProcess(max_request_bytes=200_000)
    yield server
    server.shutdown()
