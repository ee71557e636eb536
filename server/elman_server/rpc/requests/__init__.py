"""Requests of `elman.v1`: one place declares and parses each wire message, into a frozen dataclass of `inference`."""
