"""Give container engines a folder for the Container Device Interface that is not the machine's own."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import mounts


@contextmanager
def own_cdi_folder(folder: Path) -> Iterator[Path]:
    """Put an overlay over /etc, in the tests' mount namespace, and yield the path of the folder that engines read in there."""
    etc = Path(tempfile.mkdtemp(prefix="etc-", dir=folder))
    for name in ("upper", "work"):
        (etc / name).mkdir(mode=0o755)
    mounts.mount("-t", "overlay", "-o", f"lowerdir=/etc,upperdir={etc}/upper,workdir={etc}/work", "mfcp-test", "/etc")
    try:
        yield Path("/etc/cdi")
    finally:
        mounts.unmount(Path("/etc"))
        shutil.rmtree(etc)
