"""List the tests of the suites whose outcome differs with our fusermount3, each with its reason. docs/compatibility.md shows the list."""

from dataclasses import dataclass

from suites import FAILED, Suite


@dataclass(frozen=True)
class Difference:
    """Says what comes of a test with each fusermount3, and why."""

    theirs: str
    ours: str
    reason: str


_DEAD = "the program aborts in this test; its mount is then taken away at once, while a dead mount stays with libfuse's"

# By the program whose suite it is, the release of Debian, and the test.
DIFFERENCES: dict[tuple[str, str, str], Difference] = {
    ("libfuse", "bookworm", "test_examples.py::test_notify_inval_entry[True-expire_entries]"): Difference(FAILED, FAILED, _DEAD),
}


def difference(suite: Suite, test: str) -> Difference | None:
    """Return how a test differs; None where it must not."""
    return DIFFERENCES.get((suite.name, suite.release, test))
