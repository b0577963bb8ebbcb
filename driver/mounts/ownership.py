"""Decides who may unmount a mount."""

from driver.linux import usernamespace
from driver.model.fusemount import FuseMount
from driver.model.peer import Peer


def may_unmount(peer: Peer, mount: FuseMount) -> bool:
    """Return whether the peer may unmount: the user who mounted may, and root, as with libfuse's helper.

    Everybody may where it is not known who mounted (adopted mounts, old records). This stops one user of a container from
    unmounting what another one has mounted. The pid may have been reused, which is no hole: it only selects a user namespace, in
    which the peer's own uid must be root.
    """
    return mount.mounter in (None, peer.uid) or peer.uid == 0 or usernamespace.is_root_over(peer.pid, peer.uid, mount.mounter)
