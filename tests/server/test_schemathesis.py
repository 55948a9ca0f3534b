"""A few made-up requests for each operation of the document; benchmarks/fuzz_api.py sends thousands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.fuzz_api import fuzz
from runtime.server.launch import ServerProcess
from tests.server.calls import call

pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture()
def short(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server whose answers end soon, whatever is asked for."""
    server = ServerProcess(context_length=128, max_running_requests=16, state_dir=str(tmp_path))
    yield server
    server.shutdown()


def test_answers_are_those_of_the_document(short: ServerProcess) -> None:
    outcome = fuzz(short.url, each=2, phases="fuzzing", seed=20)
    assert outcome.code == 0, outcome.report
    assert outcome.operations > 30 and outcome.cases > outcome.operations
    assert call(f"{short.url}/health")[0] == 200
    assert call(f"{short.url}/get_server_info")[1]["num_running_reqs"] == 0
