"""The generated messages and stubs of elman's gRPC interface, and the table of tensor element types.

Neither the client nor the server is needed to import them.
"""
