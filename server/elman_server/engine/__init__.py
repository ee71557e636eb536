"""The engine: recurrent state in slots, and the steps on onnxruntime."""

from elman_server.engine.autotune import autotune
from elman_server.engine.interface import (
    DEFAULT_OUTPUTS,
    FREE,
    NO_CHILD,
    Arrays,
    Chunk,
    Encoded,
    Engine,
    NodeResults,
    OutputSelection,
    Results,
    TreeEngine,
    is_filtered,
)
from elman_server.engine.onnx import OnnxEngine, state_arrays
from elman_server.engine.policy import EnginePolicy
from elman_server.engine.providers import Opener, Provider
from elman_server.engine.threads import Cores, core_count, run_concurrently
from elman_server.engine.trees import OnnxTreeEngine
from elman_server.settings import ProviderChoice

__all__ = [
    "DEFAULT_OUTPUTS",
    "FREE",
    "NO_CHILD",
    "Arrays",
    "Chunk",
    "Cores",
    "Encoded",
    "Engine",
    "EnginePolicy",
    "NodeResults",
    "OnnxEngine",
    "OnnxTreeEngine",
    "Opener",
    "OutputSelection",
    "Provider",
    "ProviderChoice",
    "Results",
    "TreeEngine",
    "autotune",
    "core_count",
    "is_filtered",
    "run_concurrently",
    "state_arrays",
]
