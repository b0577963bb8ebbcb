"""Test that ours does what fusermount3 does whatever it is asked, or what docs/compatibility.md says instead."""

import cases
import pytest
from cases import Case
from differences import DIFFERENCES, keys_of_table
from hypothesis import example, given
from sides import Ours, Outcome, Reference


def explained(case: Case, reference: Reference, ours: Ours, written_for_ours: Case | None = None) -> list[str]:
    """Return the keys of the differences that show in a case. Raises AssertionError where they do not explain all of it."""
    expected, found = reference.run(case), ours.run(written_for_ours or case)
    keys: list[str] = []
    asked = case
    while expected != found:
        for key, difference in DIFFERENCES.items():
            instead = difference.explain(asked, expected, reference.run)
            if instead is not None and instead != (asked, expected):
                keys.append(key)
                asked, expected = instead
                break
        else:
            raise AssertionError(differs(case, keys, expected, found))
        assert len(keys) < 20, f"{case}: explained in circles by {keys}"
    return keys


def differs(case: Case, keys: list[str], expected: Outcome, found: Outcome) -> str:
    fields = [name for name in Outcome.__dataclass_fields__ if getattr(expected, name) != getattr(found, name)]
    lines = [f"{case}", f"explained so far: {keys}"]
    for name in fields:
        lines += [f"{name}:", f"  fusermount3: {str(getattr(expected, name))[:2000]}", f"  ours:        {str(getattr(found, name))[:2000]}"]
    return "\n".join(lines)


@given(cases.command_lines)
def test_any_command_line(reference: Reference, ours: Ours, case: Case) -> None:
    explained(case, reference, ours)


@given(cases.later_options)
def test_later_options_mean_what_3_14_has_for_them(reference: Reference, ours: Ours, twins: tuple[Case, Case]) -> None:
    explained(twins[0], reference, ours, twins[1])


@given(cases.option_texts)
@example(case=cases.mounting(b"relatime,,relatime", conf=cases.GOOD_CONF))
def test_any_text_of_options(reference: Reference, ours: Ours, case: Case) -> None:
    explained(case, reference, ours)


@given(cases.mountpoints)
def test_any_mountpoint(reference: Reference, ours: Ours, case: Case) -> None:
    explained(case, reference, ours)


@given(cases.comm_fds)
def test_any_comm_fd(reference: Reference, ours: Ours, case: Case) -> None:
    explained(case, reference, ours)


@given(cases.unmounts)
def test_any_unmount(reference: Reference, ours: Ours, case: Case) -> None:
    explained(case, reference, ours)


def test_each_difference_is_in_the_table_and_each_row_is_tested() -> None:
    assert sorted(keys_of_table()) == sorted(DIFFERENCES)
    assert all(difference.examples for difference in DIFFERENCES.values())


@pytest.mark.parametrize("key", DIFFERENCES)
def test_each_difference_shows(reference: Reference, ours: Ours, key: str) -> None:
    """A row that shows no difference any more must be removed."""
    for version, case in DIFFERENCES[key].examples:
        if reference.version.startswith(version):
            assert key in explained(case, reference, ours), case
