"""Make a root file system of Debian 13 with debootstrap, for its fusermount3. It is kept in the repository's .cache."""

import re
import shutil
import subprocess
from pathlib import Path

from harness.programs import REPOSITORY, missing

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
        command = ["debootstrap", "--variant=minbase", "--include=fuse3", _SUITE, unfinished, _mirror()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            missing(f"{' '.join(map(str, command))} failed: {done.stdout[-2000:]}")
        # An installed system has this link.
        (unfinished / "etc/mtab").symlink_to("../proc/self/mounts")
        shutil.rmtree(unfinished / "var/cache/apt")
        unfinished.rename(_ROOT)
    return _ROOT


def _mirror() -> str:
    """Return the address from which this machine's apt gets Debian."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(SITE)", "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"^Debian\|Debian\|(\S+)$", listed, re.MULTILINE)
    if found is None:
        missing("apt's sources name no mirror of Debian, from which Debian 13's fusermount3 could come")
    return found[1]
