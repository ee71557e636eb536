"""The engine: recurrent state in slots, and the steps on onnxruntime."""

from server.engine.errors import EngineError, ModelLoadError
from server.engine.interface import FREE, NOTHING, Arrays, Chunk, Encoded, Engine, Results, Wanted, is_filtered
from server.engine.onnx import OnnxEngine, state_arrays
from server.engine.providers import Opener, Provider, ProviderChoice
from server.engine.unrolling import DTYPES

__all__ = [
    "DTYPES",
    "FREE",
    "NOTHING",
    "Arrays",
    "Chunk",
    "Encoded",
    "Engine",
    "EngineError",
    "ModelLoadError",
    "OnnxEngine",
    "Opener",
    "Provider",
    "ProviderChoice",
    "Results",
    "Wanted",
    "is_filtered",
    "state_arrays",
]
