"""Test that ours does what fusermount3 does whatever it is asked, or what docs/compatibility.md says instead."""

import cases
import pytest
from cases import Case
from compare import explained
from differences import DIFFERENCES, VOLUME, differences_of, rows_of_table
from hypothesis import example, given
from sides import Ours, Reference


@given(cases.command_lines)
def test_any_command_line(reference: Reference, ours: Ours, case: Case) -> None:
    explained(VOLUME, case, reference, ours)


@given(cases.later_options)
def test_later_options_mean_what_3_14_has_for_them(reference: Reference, ours: Ours, twins: tuple[Case, Case]) -> None:
    explained(VOLUME, twins[0], reference, ours, twins[1])


@given(cases.option_texts)
@example(case=cases.mounting(b"relatime,,relatime", conf=cases.GOOD_CONF))
def test_any_text_of_options(reference: Reference, ours: Ours, case: Case) -> None:
    explained(VOLUME, case, reference, ours)


@given(cases.mountpoints)
def test_any_mountpoint(reference: Reference, ours: Ours, case: Case) -> None:
    explained(VOLUME, case, reference, ours)


@given(cases.comm_fds)
def test_any_comm_fd(reference: Reference, ours: Ours, case: Case) -> None:
    explained(VOLUME, case, reference, ours)


@given(cases.unmounts)
def test_any_unmount(reference: Reference, ours: Ours, case: Case) -> None:
    explained(VOLUME, case, reference, ours)


def test_each_difference_is_in_the_table_and_each_row_is_tested() -> None:
    assert sorted(rows_of_table()) == sorted((key, each.way) for key, each in DIFFERENCES.items())
    assert all(difference.examples for difference in DIFFERENCES.values())


@pytest.mark.parametrize("key", differences_of(VOLUME))
def test_each_difference_shows(reference: Reference, ours: Ours, key: str) -> None:
    """A row that shows no difference any more must be removed."""
    for version, case in DIFFERENCES[key].examples:
        if reference.version.startswith(version):
            assert key in explained(VOLUME, case, reference, ours), case
