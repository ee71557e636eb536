"""Responses of `elman.v1`: from the results and events of `inference` to wire messages."""
