"""Wraps what the driver uses of the Linux kernel: system calls, the mount table, inotify, capabilities.

The wrappers are thin and raise OSError with the kernel's errno. Nothing here knows what a volume is.
"""
