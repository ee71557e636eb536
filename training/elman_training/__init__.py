"""Training in torch: corpora, cells, the loop, checkpoints.

The names are loaded when they are first used, so the configuration models can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elman_training.config import (
        FeaturesConfig,
        TextConfig,
        TrainingConfig,
        TranslationConfig,
        TreeConfig,
        parse_config,
    )
    from elman_training.presets import PRESETS
    from elman_training.trainer import Result, resume, train
    from elman_training.training_error import TrainingError

_MODULES = {
    "PRESETS": "elman_training.presets",
    "FeaturesConfig": "elman_training.config",
    "Result": "elman_training.trainer",
    "TextConfig": "elman_training.config",
    "TrainingConfig": "elman_training.config",
    "TrainingError": "elman_training.training_error",
    "TranslationConfig": "elman_training.config",
    "TreeConfig": "elman_training.config",
    "parse_config": "elman_training.config",
    "resume": "elman_training.trainer",
    "train": "elman_training.trainer",
}

__all__ = [
    "PRESETS",
    "FeaturesConfig",
    "Result",
    "TextConfig",
    "TrainingConfig",
    "TrainingError",
    "TranslationConfig",
    "TreeConfig",
    "parse_config",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'elman_training' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
