"""Give the tests of kernels the harness of the system tests, and as much time as a guest takes.

packaging/build                               builds what is tested
.venv/bin/python -m pytest tests/kernels      as root
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "kernels" in item.path.parts:
            item.add_marker(pytest.mark.timeout(7200))
