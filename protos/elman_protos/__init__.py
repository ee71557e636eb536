"""The generated messages and stubs of elman's gRPC interface. Nothing here needs the client or the server."""
