"""Benchmarks: a server process, gRPC clients in another, beside what onnxruntime alone does in the same minute.

Every figure is a ratio first: machines differ, and one machine differs from hour to hour. Nothing here is a test; no
time is asserted. What processes use is read from /proc, so that they run on Linux.
"""
