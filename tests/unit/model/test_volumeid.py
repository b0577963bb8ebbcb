"""Test how volumes are named in tables and commands."""

import pytest

from driver.model.volumeid import is_named, short

INLINE = f"csi-{'0123456789abcdef' * 4}"


def test_the_id_of_an_inline_volume_is_shown_short() -> None:
    assert short(INLINE) == "csi-0123456789ab"
    assert is_named(short(INLINE), INLINE)


@pytest.mark.parametrize("name", ["w1", "pvc-data-of-a-cluster", f"{INLINE}0", INLINE[:-1], INLINE.upper()])
def test_another_id_is_shown_whole_and_named_whole(name: str) -> None:
    assert short(name) == name
    assert is_named(name, name)
    assert not is_named(name[:-1], name)


@pytest.mark.parametrize(
    ("name", "is_meant"), [(INLINE, True), (INLINE[:-1], True), (INLINE[:15], False), ("", False), (f"{INLINE[:16]}x", False)]
)
def test_a_beginning_that_is_long_enough_names_an_inline_volume(name: str, is_meant: bool) -> None:
    assert is_named(name, INLINE) is is_meant
