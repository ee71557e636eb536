"""Training in torch: corpora, cells, the loop, checkpoints."""

from training.config import PRESETS, TrainingConfig
from training.errors import TrainingError
from training.trainer import Result, resume, train

__all__ = ["PRESETS", "Result", "TrainingConfig", "TrainingError", "resume", "train"]
