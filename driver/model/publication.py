"""What a volume was published with."""

from dataclasses import dataclass, field

from driver.model.paths import VolumePaths


@dataclass(frozen=True, slots=True)
class Publication:
    """What publish was asked for; the same target again with another one is ALREADY_EXISTS.

    `pod` is NAMESPACE/NAME for the log, "" without Kubernetes. It makes no difference: whether kubelet
    tells it is podInfoOnMount of the CSIDriver, which can be another one while the pod runs.
    """

    volume_id: str
    paths: VolumePaths
    socket_name: str
    read_only: bool
    mount_flags: tuple[str, ...]
    mount_options: str
    pod: str = field(compare=False)
