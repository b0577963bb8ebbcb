"""Test that ours with a fuse device does what set-uid fusermount3 does for an ordinary user, or what docs/compatibility.md says instead."""

import cases
import device_cases
import pytest
from cases import Case
from compare import explained
from conftest import device_examples
from device_sides import DeviceOurs, DeviceReference
from differences import DEVICE, differences_of
from hypothesis import given


@device_examples
@given(cases.command_lines)
def test_any_command_line(device_reference: DeviceReference, device_ours: DeviceOurs, case: Case) -> None:
    explained(DEVICE, case, device_reference, device_ours)


@device_examples
@given(cases.option_texts)
def test_any_text_of_options(device_reference: DeviceReference, device_ours: DeviceOurs, case: Case) -> None:
    explained(DEVICE, case, device_reference, device_ours)


@device_examples
@given(device_cases.mountpoints)
def test_any_mountpoint(device_reference: DeviceReference, device_ours: DeviceOurs, case: Case) -> None:
    explained(DEVICE, case, device_reference, device_ours)


@pytest.mark.parametrize("mountpoint", device_cases.MOUNTPOINTS)
def test_each_mountpoint(device_reference: DeviceReference, device_ours: DeviceOurs, mountpoint: bytes) -> None:
    explained(DEVICE, Case((b"--", mountpoint), mountpoint=mountpoint), device_reference, device_ours)


@device_examples
@given(cases.comm_fds)
def test_any_comm_fd(device_reference: DeviceReference, device_ours: DeviceOurs, case: Case) -> None:
    explained(DEVICE, case, device_reference, device_ours)


@device_examples
@given(cases.unmounts)
def test_any_unmount(device_reference: DeviceReference, device_ours: DeviceOurs, case: Case) -> None:
    explained(DEVICE, case, device_reference, device_ours)


@pytest.mark.parametrize("key", differences_of(DEVICE))
def test_each_difference_shows(device_reference: DeviceReference, device_ours: DeviceOurs, key: str) -> None:
    """A row that shows no difference any more must be removed."""
    for version, case in differences_of(DEVICE)[key].examples:
        if device_reference.version.startswith(version):
            assert key in explained(DEVICE, case, device_reference, device_ours), case
