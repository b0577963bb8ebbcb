"""Provide for all end-to-end tests a cluster with the driver deployed from deploy/, and a way into its nodes.

    build-for-kind.sh                       builds the images
    KUBECONFIG=... tests/e2e/run            deploys, tests, and removes what it deployed

MFCP_E2E_KEEP=1 leaves the driver deployed.
"""

import os
from collections.abc import Iterator

import pytest
from cluster import ROOT, Cluster, NodeShell, check_cluster, existing


@pytest.fixture(scope="session")
def bare_cluster() -> Cluster:
    """Return the cluster as it is."""
    check_cluster()
    return Cluster()


@pytest.fixture(scope="session")
def cluster(bare_cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster with the driver."""
    for name in ("csi-driver.yaml", "csi-driver-daemonset.yaml"):
        bare_cluster.check("apply", "-f", str(ROOT / "deploy" / name))
    bare_cluster.wait_for_driver()
    yield bare_cluster
    if not os.environ.get("MFCP_E2E_KEEP"):
        for name in ("csi-driver-daemonset.yaml", "csi-driver.yaml"):
            bare_cluster.check("delete", "--wait=true", "-f", str(ROOT / "deploy" / name), timeout=300)


@pytest.fixture(scope="session")
def node(cluster: Cluster) -> Iterator[NodeShell]:
    """Run commands on the cluster's node."""
    shell = NodeShell(cluster)
    with existing(shell.pod):
        shell.pod.wait_ready()
        yield shell
