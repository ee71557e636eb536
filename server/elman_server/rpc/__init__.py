"""The door for `elman.v1` over gRPC.

transport -> services -> requests -> a use case of `inference` -> responses -> transport
"""
