"""Test an upgrade from another build and back under live mounts. This module needs that build, so tests/run does not collect it.

    MFCP_FORMER=FOLDER .venv/bin/python -m pytest tests/system/former_build.py

FOLDER is the dist/ of the former build, with its driver in meta-fuse-csi-plugin.
"""

import os
import signal

import pytest
from harness import mounts
from harness.container import Background
from harness.driver import DEFAULT, VARIABLE
from harness.events import wait_until
from harness.fleet import Application, Fleet, shows, text_at
from harness.kubelet import Published
from harness.pod import Node

FORMER = "MFCP_FORMER"
NEW = str(DEFAULT)


@pytest.fixture
def former() -> str:
    folder = os.environ.get(FORMER, "")
    driver = f"{folder}/meta-fuse-csi-plugin/meta-fuse-csi-plugin"
    if not folder or not os.path.exists(driver):
        pytest.fail(f"set {FORMER} to the dist/ folder of the former build", pytrace=False)
    return driver


def replace(monkeypatch: pytest.MonkeyPatch, node: Node, driver: str, how: signal.Signals) -> None:
    monkeypatch.setenv(VARIABLE, driver)
    assert node.driver.stop(how) in (0, -how)
    node.driver.start()


def serve(fleet: Fleet, volume: Published, text: str) -> Background:
    program = fleet.start(volume, "serves", text)
    shows(fleet.seen(volume), text)
    return program


def a_rival_is_refused(fleet: Fleet, volume: Published) -> None:
    rival = fleet.start(volume, "serves", "rival", at="/tmp")
    assert rival.wait() == 1
    assert "Device or resource busy" in rival.err


def a_death_is_noticed(volume: Published, program: Background, application: Application) -> None:
    program.kill()
    program.wait()
    volume.wait_waiting()
    shows(application.seen, "")


def an_unmount_ends(fleet: Fleet, volume: Published, program: Background, application: Application) -> None:
    done = fleet.unmount(volume)
    assert done.wait() == 0, done.err
    program.wait()
    volume.wait_waiting()
    shows(application.seen, "")


def a_program_mounts_and_dies(fleet: Fleet, volume: Published, text: str) -> None:
    program = serve(fleet, volume, text)
    program.kill()
    program.wait()
    volume.wait_waiting()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_volumes_outlive_every_change_of_the_build(monkeypatch: pytest.MonkeyPatch, node: Node, former: str, how: signal.Signals) -> None:
    """Former and new build take turns. Each finds all volumes as the other one left them, and can do everything with them."""
    before = node.snapshot()
    fleet = Fleet(node)
    replace(monkeypatch, node, former, signal.SIGTERM)
    volumes = served, waiting, dying, unmounted, crashed = [node.pod().publish() for _ in range(5)]
    reader, of_dying, of_unmounted = applications = [Application(volume) for volume in (served, dying, unmounted)]
    lasting = serve(fleet, served, "lasting")
    late = Application(served)  # it has bound the FUSE file system itself
    for turn, driver in enumerate([NEW, former, NEW, NEW, former, former, NEW]):
        mounted_before = serve(fleet, dying, f"dies-{turn}")
        asked = serve(fleet, unmounted, f"unmounted-{turn}")
        crash = serve(fleet, crashed, f"crashes-{turn}")
        monkeypatch.setenv(VARIABLE, driver)
        assert node.driver.stop(how) in (0, -how)
        crash.kill()  # while no driver runs
        crash.wait()
        assert text_at(reader.seen) == text_at(late.seen) == "lasting"
        node.driver.start()

        assert lasting.is_running
        assert text_at(reader.seen) == text_at(late.seen) == text_at(fleet.seen(served)) == "lasting"
        assert served.condition.startswith("mounted since")
        assert waiting.condition.startswith("waiting since")
        crashed.wait_waiting()
        for volume in volumes:
            volume.republish()

        a_rival_is_refused(fleet, served)
        a_death_is_noticed(dying, mounted_before, of_dying)
        an_unmount_ends(fleet, unmounted, asked, of_unmounted)
        a_program_mounts_and_dies(fleet, waiting, f"new-{turn}")

        another = node.pod().publish()  # a volume of one turn, published by one build and unpublished by the next one
        program = serve(fleet, another, "another")
        replace(monkeypatch, node, NEW if driver == former else former, how)
        another.unpublish()
        program.wait()
        assert not another.target.exists()
        replace(monkeypatch, node, driver, how)
    for application in (*applications, late):
        application.end()
    for volume in volumes:
        volume.unpublish()
    lasting.wait()
    wait_until("no mount is left", lambda: len(mounts.below(node.driver.pods_dir)) == 1)
    replace(monkeypatch, node, NEW, signal.SIGTERM)
    fleet.close()
    node.delete_pods()
    node.expect(before)
    assert "Traceback" not in node.driver.log
