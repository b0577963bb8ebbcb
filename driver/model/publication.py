"""Defines the value that describes what a volume was published with."""

from dataclasses import dataclass, field

from driver.model.paths import VolumePaths


@dataclass(frozen=True, slots=True)
class Publication:
    """Holds what a publish call asked for. Publishing the same target with another publication is refused (ALREADY_EXISTS).

    `pod` is NAMESPACE/NAME for the log, and "" without Kubernetes. It is left out of the comparison: kubelet sends the pod's
    name only if the CSIDriver object has podInfoOnMount, and that object can be replaced while the pod runs.
    """

    volume_id: str
    paths: VolumePaths
    socket_name: str
    read_only: bool
    mount_flags: tuple[str, ...]
    mount_options: str
    pod: str = field(compare=False)
