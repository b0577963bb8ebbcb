"""Reads how a process's user namespace maps uids (user_namespaces(7))."""


def is_root_over(pid: int, uid: int, other: int) -> bool:
    """Return whether `uid` is root of the user namespace of process `pid`, and the uid `other` belongs to that namespace.

    Without the second condition every user would be root over every other one, after `unshare --user --map-root-user`. Returns
    False where the process cannot be seen.
    """
    try:
        with open(f"/proc/{pid}/uid_map", encoding="ascii") as file:
            ranges = [tuple(map(int, line.split())) for line in file]
    except OSError:
        return False
    root = [outside for inside, outside, _ in ranges if inside == 0]
    return root == [uid] and any(outside <= other < outside + length for _, outside, length in ranges)
