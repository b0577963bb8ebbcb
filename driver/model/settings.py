"""What the command line says to the driver."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Paths are absolute."""

    csi_socket: str
    node_id: str
    pods_dir: str
    run_dir: str
    state_dir: str
    admin_socket: str
    kubelet_registration_path: str | None  # None: something else registers the driver, or there is no kubelet
    plugin_registration_path: str
    metrics_address: str | None

    @property
    def own_socket(self) -> str:
        """The socket in the run folder at which other drivers see, from every mount namespace, that this one serves from there."""
        return f"{self.run_dir}/admin.sock"
