"""The services of `elman.v1`: each call parses its request, runs one use case, and writes the result."""
