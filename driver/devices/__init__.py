"""The fuse device: FUSE mounts at mountpoints of a container's own, which its programs ask for at a socket that the container was given.

A one-shot process enters the container's mount namespace for each mount and unmount, and touches nothing there but file descriptors
that it holds. The container decides nothing but what it could reach by itself.
"""
