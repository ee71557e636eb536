"""Moved to `host.shaping`; this name stays until its last importer has followed."""

from elman_server.decoding.host.shaping import Shaping

__all__ = ["Shaping"]
