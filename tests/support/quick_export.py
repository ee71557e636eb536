"""Faster exports in tests: in each one, torch parses the source of all its operators' translations anew, which takes
longer than to export a small network."""

from __future__ import annotations

from copy import copy
from functools import cache

from torch.onnx._internal.exporter._registration import ONNXRegistry

_original = ONNXRegistry.from_torchlib


@cache
def _registry(opset_version: int) -> ONNXRegistry:
    return _original(opset_version)


def _copy_of_registry(opset_version: int) -> ONNXRegistry:
    registry = copy(_registry(opset_version))
    registry.functions = {target: list(metas) for target, metas in registry.functions.items()}
    return registry


def parse_translations_once() -> None:
    """Keep what this process has parsed."""
    ONNXRegistry.from_torchlib = staticmethod(_copy_of_registry)  # type: ignore[assignment, method-assign]
