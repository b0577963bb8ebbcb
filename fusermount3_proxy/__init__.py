"""What runs inside the pod, and what both sides of the socket share.

Everything here is on the path that libfuse takes at each mount, so it imports built-in modules alone
(`posix`, `_socket`, `_json`): see docs/decisions.md, "Start-up".
"""
