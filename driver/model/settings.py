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

    @property
    def own_socket(self) -> str:
        """Return the path of the admin socket in the run folder.

        Other drivers find this driver there, whichever mount namespace they are in, and so do not use its run folder.
        """
        return f"{self.run_dir}/admin.sock"
