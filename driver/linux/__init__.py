"""Thin wrappers of the Linux kernel: system calls, the mount table, inotify, capabilities.

Each raises OSError as the kernel says it. Nothing here knows what a volume is.
"""
