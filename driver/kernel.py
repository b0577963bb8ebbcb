"""The kernel's version, where that decides something that no call can be asked for."""

import re


def is_at_least(release: str, version: tuple[int, int]) -> bool:
    """Whether a release (uname -r) is that version or a later one. One without numbers is taken for it."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return found is None or (int(found[1]), int(found[2])) >= version
