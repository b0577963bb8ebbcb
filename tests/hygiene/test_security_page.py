"""Check that the tests which docs/security.md names exist, and that it names every test of an attack."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_it_names_exists() -> None:
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (ROOT / "docs/security.md").read_text())
    assert len(named) > 30
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(
            rf"^def {test}\(", (ROOT / "tests/system" / file).read_text() if (ROOT / "tests/system" / file).exists() else "", re.M
        )
    ]
    assert missing == []


def test_every_hostile_test_is_named() -> None:
    page = (ROOT / "docs/security.md").read_text()
    missing = [
        f"{path.name}::{test}"
        for path in sorted([*(ROOT / "tests/system").glob("test_hostile_*.py"), *(ROOT / "tests/system").glob("test_device_hostile*.py")])
        if path.name != "test_hostile_requests.py"
        for test in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)
        if f"`{path.name}::{test}`" not in page
    ]
    assert missing == []
