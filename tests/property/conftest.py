"""Sets up the property tests, in which hypothesis searches for inputs that break a rule.

    pytest tests/property                       300 examples of each property, well under a minute
    MFCP_EXAMPLES=20000 pytest tests/property   that many examples, for longer runs

A failure prints the smallest example that hypothesis found, and a line (`@reproduce_failure`) that runs it again. No file is
kept between runs.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

_EXAMPLES = int(os.environ.get("MFCP_EXAMPLES", "300"))

settings.register_profile(
    "mfcp",
    max_examples=_EXAMPLES,
    # A test may take long because the machine does other work.
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
