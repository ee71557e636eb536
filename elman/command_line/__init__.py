"""The command `elman`: train and export a model, serve it, call it."""

from elman.command_line.application import main

__all__ = ["main"]
