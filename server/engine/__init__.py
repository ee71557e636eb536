"""The engine: recurrent state in slots, and the step on onnxruntime."""

from server.engine.errors import EngineError, ModelLoadError
from server.engine.interface import Arrays, Engine
from server.engine.onnx import OnnxEngine
from server.engine.providers import Provider, ProviderChoice

__all__ = ["Arrays", "Engine", "EngineError", "ModelLoadError", "OnnxEngine", "Provider", "ProviderChoice"]
