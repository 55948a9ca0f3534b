"""Options of the whole test suite."""

from __future__ import annotations

import os

import pytest

if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel's module is first imported


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite tests/golden with what the code does now; read the diff",
    )
    parser.addoption("--at-length", action="store_true", help="also the runs that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--at-length"):
        skip = pytest.mark.skip(reason="takes minutes: --at-length")
        for item in items:
            if item.get_closest_marker("at_length"):
                item.add_marker(skip)
