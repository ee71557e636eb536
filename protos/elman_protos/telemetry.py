"""Importing this switches off the telemetry of onnxruntime, in this process and in those that it starts.

Its builds look up a vendor's host every few seconds and keep an identifier of the device and a database of graph names
and error texts in the user's cache folder.
"""

from __future__ import annotations

import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # Read when onnxruntime is imported.
if "onnxruntime" in sys.modules:
    sys.modules["onnxruntime"].disable_telemetry_events()
