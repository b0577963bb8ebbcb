"""Starts the driver. PyInstaller freezes this script, since it cannot freeze an entry point of pyproject.toml."""

from driver.cli import run

run()
