"""Property tests: what holds for any input, found by hypothesis.

    pytest tests/property                       300 examples of each property, well under a minute
    MFCP_EXAMPLES=20000 pytest tests/property   as many as you like, for longer runs

A failure prints the example that it was reduced to, and a line (`@reproduce_failure`) that runs it again. Nothing is kept
between runs.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

_EXAMPLES = int(os.environ.get("MFCP_EXAMPLES", "300"))

settings.register_profile(
    "mfcp",
    max_examples=_EXAMPLES,
    # A machine that does other work is slow, and that is no failure.
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mfcp")

# The limit for one test grows with the number of its examples.
_SECONDS_PER_EXAMPLE = 0.2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "property" in item.path.parts:
            item.add_marker(pytest.mark.timeout(max(120, _EXAMPLES * _SECONDS_PER_EXAMPLE)))
