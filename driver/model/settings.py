"""Defines the settings that the command line gives to the driver."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Holds the driver's settings. All paths are absolute."""

    csi_socket: str
    node_id: str
    pods_dir: str
    run_dir: str
    state_dir: str
    admin_socket: str
    kubelet_registration_path: str | None  # None if something else registers the driver, or if there is no kubelet
    plugin_registration_path: str
    metrics_address: str | None
    fuse_dir: str  # what containers bind that have a fuse device
    fuse_dir_on_node: str  # the same folder, as kubelet and container engines see it
    fuse_devices: int  # how many kubelet may hand out of each resource; 0 turns fuse devices off
    fuse_resources: tuple[str, ...]
    fuse_mounts_max: int
    fuse_allow_other: bool
    client_tree: str  # the client's programs, for these containers
    cdi_dir: str | None
    device_plugins_dir: str
    pod_resources_socket: str

    @property
    def own_socket(self) -> str:
        """Return the path of the admin socket in the run folder.

        Other drivers find this driver there, whichever mount namespace they are in, and so do not use its run folder.
        """
        return f"{self.run_dir}/admin.sock"
