"""The map of the code names files and functions that are there, and every package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def named() -> list[str]:
    """The files that the page names, with the folders that it leaves out."""
    return sorted(set(re.findall(r"`([\w./-]+\.(?:py|c))`", PAGE)))


@pytest.mark.parametrize("name", named())
def test_a_file_that_it_names_is_there(name: str) -> None:
    places = [ROOT, ROOT / "driver", ROOT / "fusermount3_proxy", ROOT / "driver/mounts", ROOT / "driver/volumes"]
    assert any((place / name).is_file() for place in places), name


@pytest.mark.parametrize(("file", "function"), re.findall(r"`([\w./]+\.py)`(?:,|:) `(\w+)\(\)`", PAGE))
def test_a_function_that_it_names_is_in_its_file(file: str, function: str) -> None:
    (path,) = [path for place in ("", "driver", "fusermount3_proxy", "driver/mounts") if (path := ROOT / place / file).is_file()]
    assert f"def {function}(" in path.read_text()


def test_every_package_is_in_the_table() -> None:
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "driver").glob("*/__init__.py")}
    assert {package for package in packages if f"| `{package}` |" not in PAGE} == set()
