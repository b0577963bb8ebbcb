"""Makes the folder of a fuse device's socket where one user of the node can reach it, for engines that run without root.

    /run/user/UID/mfcp/NAME

The user owns /run/user/UID, and may rename or remove what the driver makes in it, at any time. So nothing here follows a symlink, and
what is made belongs to the driver: the user can take the folder away, and put nothing into it.
"""

import os
import pwd
from errno import EPERM

from driver.model.errors import Code, VolumeError

RUNTIME_FOLDERS = "/run/user"  # systemd makes a folder in it for each user who is logged in, or lingers: pam_systemd(8)
_OURS = "mfcp"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def uid_of(user: str) -> int:
    """Return the uid of a user who is given by name or by uid. It may ask a server for the name. Raises VolumeError."""
    if user.isascii() and user.isdecimal() and int(user) < 0xFFFFFFFF:  # (uid_t) -1 is no user, chown(2)
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except (KeyError, ValueError):
        raise VolumeError(Code.INVALID_ARGUMENT, f"this node has no user {user!r}: give --user a name, or a uid in digits") from None


def path_of(uid: int, name: str, below: str = RUNTIME_FOLDERS) -> str:
    """Return the path of the folder for the device `name` of a user."""
    return f"{below}/{uid}/{_OURS}/{name}"


def make(uid: int, name: str, below: str = RUNTIME_FOLDERS) -> int:
    """Make the folder for the device `name` of a user, and return an fd of it. It may be there already. Raises VolumeError.

    `name` is one that paths.check_device_name() lets pass. Use the fd, and not the path, for all that is made in the folder.
    """
    home = f"{below}/{uid}"
    try:
        try:
            fd = os.open(home, _FOLDER)
        except FileNotFoundError:
            text = f"user {uid} has no folder {home}: log the user in, or run 'loginctl enable-linger {uid}', which makes it last"
            raise VolumeError(Code.FAILED_PRECONDITION, text) from None
        for each in (_OURS, name):
            above = fd
            try:
                fd = _make_in(above, each)
            finally:
                os.close(above)
        return fd
    except OSError as error:
        text = f"cannot make {path_of(uid, name, below)}: {error.strerror}; remove what is in its place"
        raise VolumeError(Code.FAILED_PRECONDITION, text) from None


def remove(uid: int, name: str, below: str = RUNTIME_FOLDERS) -> None:
    """Remove the folder, which must be empty, if it is there. Raises OSError."""
    try:
        fd = os.open(f"{below}/{uid}/{_OURS}", _FOLDER)
    except FileNotFoundError:
        return
    try:
        os.rmdir(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    finally:
        os.close(fd)


def _make_in(folder: int, name: str) -> int:
    try:
        os.mkdir(name, 0o755, dir_fd=folder)
    except FileExistsError:
        pass
    fd = os.open(name, _FOLDER, dir_fd=folder)
    try:
        # In a folder of the user's own the user could replace the socket, and find out who connects to it.
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise OSError(EPERM, f"{name} belongs to another user")
        os.fchmod(fd, 0o755)
        return fd
    except BaseException:
        os.close(fd)
        raise
