"""Make a root file system of Debian 13 with debootstrap, for its fusermount3. It is kept in the repository's .cache."""

import shutil
import subprocess
from pathlib import Path

from harness.programs import REPOSITORY, debian_mirror, missing

_ROOT = REPOSITORY / ".cache" / "differential" / "debian13"
_SUITE = "trixie"


def root() -> Path:
    """Return its folder."""
    if not _ROOT.exists():
        if shutil.which("debootstrap") is None:
            missing("debootstrap is missing; type: apt-get install debootstrap debian-archive-keyring")
        unfinished = _ROOT.with_name(f"{_ROOT.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", "--include=fuse3", _SUITE, unfinished, debian_mirror()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            missing(f"{' '.join(map(str, command))} failed: {done.stdout[-2000:]}")
        # An installed system has this link.
        (unfinished / "etc/mtab").symlink_to("../proc/self/mounts")
        shutil.rmtree(unfinished / "var/cache/apt")
        unfinished.rename(_ROOT)
    return _ROOT
