"""Boot Debian's kernels, run a smoke set of the system tests in each, and write what was seen into docs/operations.md."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from harness.image import check_built
from harness.programs import REPOSITORY, static_fuse_program
from harness.table import replace
from kernels import Boot, Kernel, boot, check_installed, fetch

BELOW_THE_FLOOR = Kernel("5.10", 11, "bullseye")
WITHOUT_IDMAPPED_TMPFS = Kernel("6.1", 12, "bookworm")
NEWEST = Kernel("6.12", 13, "trixie")
ALL = [BELOW_THE_FLOOR, WITHOUT_IDMAPPED_TMPFS, NEWEST]
_AT_ONCE = 2

_BEGIN = "<!-- made by tests/kernels -->"
_OWN = "tests/system/distribution_kernel.py"
_CALLS = {"the calls": [f"{_OWN}::test_each_call_is_there_or_missing"]}

REFUSED = _CALLS | {"the driver is refused": [f"{_OWN}::test_a_kernel_below_the_floor_is_refused"]}

# What is checked, and the system tests that check it.
SMOKE = _CALLS | {
    "the driver runs": [f"{_OWN}::test_the_driver_runs", "tests/system/test_node_check.py::test_a_node_that_lacks_nothing"],
    "a container without privileges": ["tests/system/test_containers.py::test_the_fuse_container_has_no_privileges"],
    # A volume is added, mounted by our fusermount3, seen in containers from before and after the mount, and removed.
    "the core of the standalone example": ["tests/system/test_without_kubernetes.py::test_a_volume_from_add_to_remove"],
    "mount, and unmount": [
        "tests/system/test_unmounting.py::test_unmount_and_mount_again_three_times",
        "tests/system/test_unmounting.py::test_a_busy_file_system_stays",
    ],
    "lazy unmount": [
        "tests/system/test_lazy_unmount.py::test_open_files_are_served_until_they_are_closed",
        "tests/system/test_lazy_unmount.py::test_what_nobody_uses_ends_at_once",
    ],
    "the program dies": [
        "tests/system/test_program_death.py::test_a_process_that_keeps_the_file_descriptor_keeps_the_file_system",
        "tests/system/test_program_death.py::test_the_log_tells_of_the_death",
    ],
    "containers from before and after the mount": [
        "tests/system/test_unmounting.py::test_an_application_that_started_after_the_mount_sees_each_one"
    ],
    "subPath": [
        "tests/system/test_sub_paths.py::test_writing_through_it_reaches_the_new_program",
        "tests/system/test_sub_paths.py::test_an_unmount_by_hand_is_like_a_crash",
    ],
    "synchronous INIT": [f"{_OWN}::test_synchronous_init_is_refused_and_the_program_is_mounted"],
    "the driver restarts": [
        "tests/system/test_driver_restart.py::test_mounts_go_on_and_are_unmounted_by_the_next_driver",
        "tests/system/test_driver_restart.py::test_volumes_without_kubernetes_go_on",
    ],
    "hostile file descriptors": [
        "tests/system/test_hostile_fds.py::test_fds_of_every_kind_before_with_and_after_the_request",
    ],
    "user namespaces": [
        "tests/system/test_user_namespaces.py::test_a_program_mounts_dies_and_is_replaced_and_all_see_it[remapped-fusermount3]",
        "tests/system/test_user_namespaces.py::test_owners_are_the_nodes[remapped]",
        f"{_OWN}::test_an_idmapped_copy_of_a_volume_that_waits",
    ],
    "a fuse device": [
        "tests/system/test_device.py::test_an_ordinary_user_mounts_and_unmounts",
        "tests/system/test_device.py::test_the_mount_of_a_dead_program_is_taken_away",
        "tests/system/test_device.py::test_a_busy_mount_is_unmounted_lazily_alone",
        "tests/system/test_device_life.py::test_a_container_in_a_user_namespace_of_its_own",
        "tests/system/test_device_life.py::test_such_a_mount_survives_the_driver[9]",
    ],
    "cgroup v2": [f"{_OWN}::test_a_container_that_is_killed_for_its_memory_under_cgroup_v2"],
    "AppArmor": [
        f"{_OWN}::test_under_apparmor_libfuse_does_not_ask_its_helper",
        f"{_OWN}::test_under_apparmor_and_a_seccomp_filter_as_dockers_libfuse_mounts",
        f"{_OWN}::test_under_apparmor_fuse_starter_mounts",
    ],
}

IDMAPPED = {
    "idmapped volumes": [
        "tests/system/test_user_namespaces.py::test_a_program_mounts_dies_and_is_replaced_and_all_see_it[idmapped-fusermount3]",
        "tests/system/test_user_namespaces.py::test_a_mounted_file_system_can_not_be_idmapped",
    ]
}

CHECKS = {BELOW_THE_FLOOR: REFUSED, WITHOUT_IDMAPPED_TMPFS: SMOKE, NEWEST: SMOKE | IDMAPPED}
CASES = [(kernel, what) for kernel, checks in CHECKS.items() for what in checks]


@pytest.fixture(scope="session")
def boots() -> Iterator[dict[Kernel, Future[Boot]]]:
    """Boot all kernels, two at a time, and write the table if everything passed in all of them."""
    if os.geteuid() != 0:
        pytest.fail("the guests read the whole root of this machine: run these tests as root", pytrace=False)
    check_installed()
    check_built()
    static_fuse_program()  # built here, where it is much faster than in the guest
    for kernel in ALL:
        fetch(kernel)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = {kernel: pool.submit(boot, kernel, [test for tests in CHECKS[kernel].values() for test in tests]) for kernel in ALL}
        yield futures
    ended = {kernel: future.result() for kernel, future in futures.items() if future.exception() is None}
    if len(ended) == len(ALL) and not any(outcome.failure for each in ended.values() for outcome in each.outcomes.values()):
        replace(REPOSITORY / "docs/operations.md", _BEGIN, "\n".join(rows(ended)))


@pytest.mark.parametrize(("kernel", "what"), CASES, ids=[f"{kernel.version}-{what}" for kernel, what in CASES])
def test_kernel(boots: dict[Kernel, Future[Boot]], kernel: Kernel, what: str) -> None:
    came = boots[kernel].result()
    for test in CHECKS[kernel][what]:
        outcomes = came.of(test)
        assert outcomes, f"{test} did not run under {kernel.title}:\n{came.console}"
        for name, outcome in outcomes.items():
            if outcome.failure:
                pytest.fail(f"{name} failed under {kernel.title}:\n{outcome.failure}", pytrace=False)


def rows(ended: dict[Kernel, Boot]) -> list[str]:
    """Return the table: a row for everything that a test recorded, and a column for each kernel."""
    seen = {kernel: {row: cell for outcome in ended[kernel].outcomes.values() for row, cell in outcome.seen.items()} for kernel in ALL}
    names = dict.fromkeys(row for kernel in reversed(ALL) for row in seen[kernel])
    head = ["what", *(kernel.title for kernel in ALL)]
    body = [[name, *(seen[kernel].get(name, "not tried") for kernel in ALL)] for name in names]
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]
