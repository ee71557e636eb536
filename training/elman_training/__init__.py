"""Training in torch: corpora, cells, the loop, checkpoints."""

import torch  # noqa: F401 - first of all, so that where the extra is missing it is torch that is named

from elman_training.config import (
    PRESETS,
    FeaturesConfig,
    TextConfig,
    TrainingConfig,
    TranslationConfig,
    TreeConfig,
    parse_config,
)
from elman_training.errors import TrainingError
from elman_training.trainer import Result, resume, train

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
