"""The script that PyInstaller freezes: what `meta-fuse-csi-plugin` of pyproject.toml starts."""

from driver.cli import run

run()
