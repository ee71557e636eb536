"""The command `elman`."""

from elman.cli.application import main

__all__ = ["main"]
