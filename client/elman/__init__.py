"""elman: a server for recurrent models.

What a user imports stands here: the client, its results and exceptions, and, where the extra `training` is installed,
what exports a torch module of one's own as a bundle.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elman.analysis import (
        Embedding,
        InspectedStep,
        InspectionStream,
        Score,
        ScoreStream,
        Tensor,
        TokenScore,
        Unit,
    )
    from elman.client import Choice, ChoiceScore, Chunk, Client, GenerationStream, Model
    from elman.decoding import Continuation, EarlyStopping, FinishReason, TokenReport, Usage
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
    from elman.sessions import Session, SessionContent
    from elman.trees import TreeNode
    from elman.whole import Label, Prediction
    from elman_bundle import ByteVocabulary, CharacterVocabulary, SubwordVocabulary, WordVocabulary
    from elman_export import ExportError, Labels, NextToken, StepModule, Token, Tree, Values, export_bundle

# Loaded when first used: a client needs no torch, and the bundle needs no client.
_HOMES = {
    "elman.analysis": (
        "Embedding",
        "InspectedStep",
        "InspectionStream",
        "Score",
        "ScoreStream",
        "Tensor",
        "TokenScore",
        "Unit",
    ),
    "elman.client": ("Choice", "ChoiceScore", "Chunk", "Client", "GenerationStream", "Model"),
    "elman.decoding": ("Continuation", "EarlyStopping", "FinishReason", "TokenReport", "Usage"),
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
    "elman.sessions": ("Session", "SessionContent"),
    "elman.trees": ("TreeNode",),
    "elman.whole": ("Label", "Prediction"),
    "elman_bundle": ("ByteVocabulary", "CharacterVocabulary", "SubwordVocabulary", "WordVocabulary"),
    "elman_export": ("ExportError", "Labels", "NextToken", "StepModule", "Token", "Tree", "Values", "export_bundle"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ByteVocabulary",
    "CharacterVocabulary",
    "Choice",
    "ChoiceScore",
    "Chunk",
    "Client",
    "Continuation",
    "DeadlineExceededError",
    "EarlyStopping",
    "ElmanError",
    "Embedding",
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
    "StepModule",
    "SubwordVocabulary",
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
    if name == "v1":  # Where the generated stubs used to be; existing programs import them from here.
        return import_module("elman_protos.v1")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'elman' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
