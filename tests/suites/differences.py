"""List the tests of the suites that may end differently with our fusermount3, each with its reason."""

from dataclasses import dataclass

from suites import FAILED, PASSED, Suite


@dataclass(frozen=True)
class Difference:
    """Says what may come of a test with either fusermount3, and why it is not the same."""

    kinds: frozenset[str]
    reason: str


# libfuse 3.17 goes on where the kernel answers ENOENT.
_ABORTS = Difference(
    frozenset((PASSED, FAILED)),
    "its program aborts where the kernel does not know the name that it gives up, which depends on timing; "
    "the mount is then taken away at once, while a dead mount stays with libfuse's",
)

# By the program whose suite it is, the release of Debian, and the test.
DIFFERENCES: dict[tuple[str, str, str], Difference] = {
    ("libfuse", "bookworm", "test_examples.py::test_notify_inval_entry[True-expire_entries]"): _ABORTS,
    ("libfuse", "bookworm", "test_examples.py::test_notify_inval_entry[True-invalidate_entries]"): _ABORTS,
}


def difference(suite: Suite, test: str) -> Difference | None:
    """Return how a test may differ; None where it must not."""
    return DIFFERENCES.get((suite.name, suite.release, test))
