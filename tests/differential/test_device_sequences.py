"""Test that mounts at a fuse device live and end as those of set-uid fusermount3, whatever users do with them one after the other.

What differs is in docs/compatibility.md. Sequences leave it out where the two sides would go different ways, and has tests of its own.
"""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from conftest import device_examples
from device_sides import NOBODY, ROOT, DeviceOurs, DeviceReference
from harness.events import wait_until
from harness.mounts import Mount
from hypothesis import given
from sequences import Do, Step, Walk, make_places, sequences
from sides import Ended

Sides = tuple[DeviceReference, DeviceOurs]


@pytest.fixture(scope="module")
def sides(device_reference: DeviceReference, device_ours: DeviceOurs) -> Iterator[Sides]:
    """Make the mountpoints of the sequences on both sides."""
    for side in (device_reference, device_ours):
        make_places(side)
    yield device_reference, device_ours


@device_examples
@given(sequences)
def test_any_sequence(sides: Sides, steps: list[Step]) -> None:
    walks = [Walk(side) for side in sides]
    left: set[str] = set()  # paths at which programs have died; the first -u there succeeds
    try:
        for number, step in enumerate(steps):
            _both(sides, walks, step, left, f"{number + 1}. of {steps}")
    finally:
        for walk in walks:
            walk.close(left)


def _both(sides: Sides, walks: list[Walk], step: Step, left: set[str], where: str) -> None:
    reference, ours = walks
    place = reference.path(step)
    table = sides[0].table()
    if _goes_different_ways(step, place, table):
        return
    if step.do is Do.UNMOUNT and _is_at_mount_root(step, place, table):
        step = replace(step, options=step.options.replace("-u", "-uz").replace("zz", "z").replace("-uzqz", "-uqz"))
    if step.do is Do.DIE and (top := reference.topmost(place)) is not None:
        left.add(top.path)
    expected, found = reference.do(step), ours.do(step)
    _same(step, place, expected, found, left, where)
    reference.detach_dead()
    expected_lines = sides[0].lines()
    try:
        wait_until("the mounts are the same", lambda: sides[1].lines() == expected_lines)
    except AssertionError:
        raise AssertionError(f"{where}:\n  fusermount3: {expected_lines}\n  ours:        {sides[1].lines()}") from None


def _goes_different_ways(step: Step, place: str, table: list[Mount]) -> bool:
    for mount in table:
        is_inside = place.startswith(f"{mount.path}/")
        # A set-uid program sees no file system that lets no other user in (own-file-system).
        if "allow_other" not in mount.super_options and (is_inside or (step.do is Do.MOUNT and mount.path == place)):
            return True
        # Ours mounts on what is read-only (read-only).
        if step.do is Do.MOUNT and "ro" in mount.options and (is_inside or mount.path == place):
            return True
    # What a later mount hides has no path any more; the driver has an fd of it.
    above = [number for number, mount in enumerate(table) if place.startswith(f"{mount.path}/")]
    if step.do in (Do.UNMOUNT, Do.DIE) and any(mount.path == place for mount in table[: max(above, default=0)]):
        return True
    here = [mount for mount in table if mount.path == place]
    if step.do is Do.UNMOUNT and step.user == ROOT and step.place == "tmpfs" and not here:
        return True  # for root it unmounts whatever is there
    # A mount of the user's own is covered by another's, which fusermount3 unmounts then (others-on-top).
    return step.do is Do.UNMOUNT and step.user != ROOT and any(_is_of(here[-1], step) != _is_of(mount, step) for mount in here)


def _is_of(mount: Mount, step: Step) -> bool:
    return f"user_id={step.user.uid}" in mount.super_options


def _is_at_mount_root(step: Step, place: str, table: list[Mount]) -> bool:
    return step.place == "tmpfs" or len([mount for mount in table if mount.path == place]) > 1


def _same(step: Step, place: str, expected: Ended | None, found: Ended | None, left: set[str], where: str) -> None:
    if step.do is Do.MOUNT and expected is not None and expected.code == 0:
        left.discard(place)
    if step.do is Do.UNMOUNT and expected is not None:
        not_found = b"entry for %s not found in /etc/mtab\n" % place.encode()
        if step.user == ROOT and expected.err == b"failed to unmount %s: Invalid argument\n" % place.encode():
            expected = replace(expected, err=not_found)  # it makes fewer checks for root
        if place in left and expected.code == 1 and expected.err in (b"", not_found):
            left.discard(place)
            expected = Ended(0, b"", b"")
        elif expected.code == 0:
            left.discard(place)
    assert found == expected, f"{where}:\n  fusermount3: {expected}\n  ours:        {found}"


def _run(sides: Sides, *steps: Step) -> list[tuple[Ended | None, tuple[str, ...]]]:
    """Run steps on both sides. Return how the last one ended on each, and where FUSE mounts are then."""
    results = []
    for walk, side in zip(map(Walk, sides), sides, strict=True):
        try:
            for step in steps:
                ended = walk.do(step)
            home = f"{side.place.folder}/"
            results.append((ended, tuple(mount.path.removeprefix(home) for mount in side.table())))
        finally:
            walk.close()
    return results


_MOUNT = Step(Do.MOUNT, "world", options="allow_other")


def test_others_on_top(sides: Sides) -> None:
    """A mount that another user has put over one's own: fusermount3 takes off the other's."""
    by_root = replace(_MOUNT, user=ROOT)
    (theirs, left), (ours, left_by_ours) = _run(sides, _MOUNT, by_root, Step(Do.UNMOUNT, "world", options="-u"))
    assert theirs == Ended(0, b"", b"") and left == ("world",)
    assert ours is not None and ours.code == 1 and b"entry for " in ours.err and left_by_ours == ("world", "world")


@pytest.mark.parametrize("below", [Step(Do.RELEASE), replace(_MOUNT, place="tmpfs")], ids=["a mount", "a mount of the user's own"])
def test_at_mount_roots(sides: Sides, below: Step) -> None:
    """A mount on the root of another one: -u is always lazy."""
    mount = replace(_MOUNT, place="tmpfs")
    (theirs, _), (ours, _) = _run(sides, below, mount, Step(Do.HOLD, "tmpfs"), Step(Do.UNMOUNT, "tmpfs", NOBODY, "-u"))
    assert theirs is not None and b"Device or resource busy" in theirs.err
    assert ours == Ended(0, b"", b"")


def test_the_users_own_program_says_who_may_write(sides: Sides) -> None:
    """The owners in sshfs's file system are those of another machine; a mount in one is allowed where its program allows to write."""
    far = replace(_MOUNT, is_remote=True)
    (theirs, table), (ours, table_of_ours) = _run(sides, far, replace(_MOUNT, place="world/d"))
    assert ours == theirs == Ended(0, b"", b"")
    assert table_of_ours == table == ("world", "world/d")


def test_the_path_of_a_mount_whose_folder_was_renamed(sides: Sides) -> None:
    """At the former path nothing is mounted, and -u unmounts nothing."""
    mount, unmount = replace(_MOUNT, place="par/p"), Step(Do.UNMOUNT, "par/p", options="-u")
    (theirs, table), (ours, table_of_ours) = _run(sides, mount, Step(Do.REPLACE), unmount)
    assert ours == theirs
    assert theirs is not None and theirs.err.startswith(b"entry for ")
    assert table_of_ours == table == ("rap/p",)
    (theirs, table), (ours, table_of_ours) = _run(sides, mount, Step(Do.REPLACE), replace(unmount, place="rap/p"))
    assert ours == theirs == Ended(0, b"", b"")
    assert table_of_ours == table == ()


def test_covered_mounts(sides: Sides) -> None:
    """What root has mounted over a FUSE file system: fusermount3 unmounts that."""
    (theirs, table), (ours, table_of_ours) = _run(sides, _MOUNT, Step(Do.COVER, "world"), Step(Do.UNMOUNT, "world", options="-u"))
    assert theirs == Ended(0, b"", b"")
    assert ours is not None and b"Device or resource busy" in ours.err
    assert table_of_ours == table == ("world",)


def test_a_program_that_dies_beneath_another_mount(sides: Sides) -> None:
    """It is taken away when it is uncovered."""
    first, second = (replace(_MOUNT, options=f"allow_other,fsname={name}") for name in ("first", "second"))
    walk, ours = Walk(sides[1]), sides[1]
    try:
        walk.do(first)
        walk.do(second)
        walk.die_beneath("world")
        assert len(ours.table()) == 2
        assert walk.do(Step(Do.UNMOUNT, "world", options="-u")) == Ended(0, b"", b"")
        wait_until("nothing is mounted", lambda: not ours.table(), 30)
    finally:
        walk.close([f"{ours.place.folder}/world"])
