"""elman: a server for recurrent models.

The public names: the client, its results and exceptions, and, with the extra `training`, the export of torch modules.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elman.analysis_calls import InspectionStream, ScoreStream
    from elman.analysis_results import Embedding, InspectedStep, Score, Tensor, TokenScore, Unit
    from elman.client import Client, Model
    from elman.decoding import Decoding, EarlyStopping
    from elman.errors import (
        DeadlineExceededError,
        ElmanError,
        InvalidRequestError,
        ModelNotFoundError,
        OverloadedError,
        ServerError,
        SessionConflictError,
        SessionExistsError,
        SessionNotFoundError,
        UnavailableError,
    )
    from elman.generation_results import Choice, ChoiceScore, Chunk, Continuation, FinishReason, TokenReport, Usage
    from elman.generation_stream import GenerationStream
    from elman.label_results import Label, Prediction
    from elman.multiplexing import MultiplexedCalls
    from elman.session_results import Session, SessionContent
    from elman.tree_input import TreeNode
    from elman_bundle import (
        BundleError,
        ByteVocabulary,
        CharacterVocabulary,
        EncodingError,
        SubwordVocabulary,
        SymbolVocabulary,
        WordVocabulary,
    )
    from elman_export import (
        EncoderModule,
        ExportError,
        Labels,
        NextToken,
        Source,
        StepModule,
        Token,
        Tree,
        Values,
        export_bundle,
    )

# Loaded when first used: a client needs no torch, and the bundle needs no client.
_MODULES = {
    "elman.analysis_calls": ("InspectionStream", "ScoreStream"),
    "elman.analysis_results": ("Embedding", "InspectedStep", "Score", "Tensor", "TokenScore", "Unit"),
    "elman.client": ("Client", "Model"),
    "elman.decoding": ("Decoding", "EarlyStopping"),
    "elman.errors": (
        "DeadlineExceededError",
        "ElmanError",
        "InvalidRequestError",
        "ModelNotFoundError",
        "OverloadedError",
        "ServerError",
        "SessionConflictError",
        "SessionExistsError",
        "SessionNotFoundError",
        "UnavailableError",
    ),
    "elman.generation_results": (
        "Choice",
        "ChoiceScore",
        "Chunk",
        "Continuation",
        "FinishReason",
        "TokenReport",
        "Usage",
    ),
    "elman.generation_stream": ("GenerationStream",),
    "elman.label_results": ("Label", "Prediction"),
    "elman.multiplexing": ("MultiplexedCalls",),
    "elman.session_results": ("Session", "SessionContent"),
    "elman.tree_input": ("TreeNode",),
    "elman_bundle": (
        "BundleError",
        "ByteVocabulary",
        "CharacterVocabulary",
        "EncodingError",
        "SubwordVocabulary",
        "SymbolVocabulary",
        "WordVocabulary",
    ),
    "elman_export": (
        "EncoderModule",
        "ExportError",
        "Labels",
        "NextToken",
        "Source",
        "StepModule",
        "Token",
        "Tree",
        "Values",
        "export_bundle",
    ),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BundleError",
    "ByteVocabulary",
    "CharacterVocabulary",
    "Choice",
    "ChoiceScore",
    "Chunk",
    "Client",
    "Continuation",
    "DeadlineExceededError",
    "Decoding",
    "EarlyStopping",
    "ElmanError",
    "Embedding",
    "EncoderModule",
    "EncodingError",
    "ExportError",
    "FinishReason",
    "GenerationStream",
    "InspectedStep",
    "InspectionStream",
    "InvalidRequestError",
    "Label",
    "Labels",
    "Model",
    "ModelNotFoundError",
    "MultiplexedCalls",
    "NextToken",
    "OverloadedError",
    "Prediction",
    "Score",
    "ScoreStream",
    "ServerError",
    "Session",
    "SessionConflictError",
    "SessionContent",
    "SessionExistsError",
    "SessionNotFoundError",
    "Source",
    "StepModule",
    "SubwordVocabulary",
    "SymbolVocabulary",
    "Tensor",
    "Token",
    "TokenReport",
    "TokenScore",
    "Tree",
    "TreeNode",
    "UnavailableError",
    "Unit",
    "Usage",
    "Values",
    "WordVocabulary",
    "export_bundle",
]


def __getattr__(name: str) -> Any:
    if name == "v1":  # Existing programs import the generated stubs from here.
        return import_module("elman_protos.v1")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'elman' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
