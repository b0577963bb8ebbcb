"""Runs privileged on the node, and mounts FUSE file systems on behalf of pods (docs/security.md)."""

__version__ = "1.0.0"
