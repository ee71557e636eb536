"""Benchmarks: a server process and gRPC clients in another process, compared with onnxruntime alone.

The main figures are ratios to onnxruntime measured within the same minute, because machines differ and the speed of one
machine varies over time. The benchmarks are not tests: no duration is asserted. They read resource usage from /proc and
therefore require Linux.
"""

import elman_protos.telemetry  # noqa: F401
