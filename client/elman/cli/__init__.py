"""The command `elman`: train and export a model, serve it, call it."""

from elman.cli.application import main

__all__ = ["main"]
