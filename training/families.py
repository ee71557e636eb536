"""Which task and which network each kind of configuration means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from training.config import TrainingConfig, TreeConfig
from training.corpus import read_labelled_examples, read_labelled_text, read_text
from training.network import RecurrentNetwork
from training.task import Task
from training.tasks import ClassificationTask, LanguageTask, TaggingTask
from training.tree_corpus import read_treebank
from training.tree_networks import TreeNetwork
from training.trees import TreeTask


def make_task(config: TrainingConfig) -> Task:
    """The task that a configuration asks for, its corpus read.

    Raises:
        TrainingError: the corpus cannot be read or is too small.
    """
    if isinstance(config, TreeConfig):
        return TreeTask(config, read_treebank(config.corpus))
    if config.task == "classify":
        return ClassificationTask(config, read_labelled_examples(config.corpus))
    if config.task == "tag":
        return TaggingTask(config, read_labelled_text(config.corpus, config.corpus_limit))
    return LanguageTask(config, read_text(config.corpus)[: config.corpus_limit])


def make_network(config: TrainingConfig, sizes: Mapping[str, int]) -> nn.Module:
    """The untrained network of a configuration; its initial weights depend on the seed alone.

    Args:
        config: what it is for.
        sizes: the task's `sizes`.
    """
    torch.manual_seed(config.seed)
    if isinstance(config, TreeConfig):
        return TreeNetwork(
            cell=config.cell,
            tokens=sizes[""],
            outputs=sizes["labels"],
            embedding=config.embedding,
            hidden=config.hidden,
            dropout=config.dropout,
        )
    return RecurrentNetwork(
        cell=config.cell,
        tokens=sizes[""],
        outputs=sizes.get("labels", sizes[""]),
        layers=config.layers,
        embedding=config.embedding,
        hidden=config.hidden,
        dropout=config.dropout,
    )
