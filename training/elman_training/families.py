"""Which task and which network each kind of configuration means."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from elman_training.bidirectional import BidirectionalClassifier
from elman_training.classification import ClassificationTask
from elman_training.config import FeaturesConfig, TrainingConfig, TranslationConfig, TreeConfig
from elman_training.corpus import read_labelled_text, read_text
from elman_training.encoder_decoder import EncoderDecoder
from elman_training.examples import read_example_parts
from elman_training.features import FeaturesTask, FeedForwardNetwork
from elman_training.network import RecurrentNetwork
from elman_training.pairs import read_pairs
from elman_training.tables import read_table
from elman_training.task import Task
from elman_training.tasks import LanguageTask, TaggingTask
from elman_training.translation import TranslationTask
from elman_training.tree_corpus import read_treebank
from elman_training.tree_networks import TreeNetwork
from elman_training.trees import TreeTask


def make_task(config: TrainingConfig) -> Task:
    """The task that a configuration asks for, its corpus read.

    Raises:
        TrainingError: the corpus cannot be read or is too small.
    """
    if isinstance(config, TranslationConfig):
        return TranslationTask(config, read_pairs(config.corpus, config.held_out, config.seed))
    if isinstance(config, FeaturesConfig):
        return FeaturesTask(config, read_table(config.corpus))
    if isinstance(config, TreeConfig):
        return TreeTask(config, read_treebank(config.corpus))
    if config.task == "classify":
        return ClassificationTask(config, read_example_parts(config))
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
    if isinstance(config, TranslationConfig):
        return EncoderDecoder(
            cell=config.cell,
            source_tokens=sizes["source-"],
            tokens=sizes[""],
            layers=config.layers,
            embedding=config.embedding,
            hidden=config.hidden,
            attention=config.attention_score if config.attention else None,
            bidirectional=config.bidirectional,
            one_hot=config.one_hot,
            dropout=config.dropout,
            source_deviation=config.source_deviation,
        )
    if isinstance(config, FeaturesConfig):
        return FeedForwardNetwork(
            features=sizes["features"],
            outputs=sizes["labels"],
            layers=config.layers,
            hidden=config.hidden,
            dropout=config.dropout,
            input_noise=config.input_noise,
        )
    if isinstance(config, TreeConfig):
        return TreeNetwork(
            cell=config.cell,
            tokens=sizes[""],
            outputs=sizes["labels"],
            embedding=config.embedding,
            hidden=config.hidden,
            dropout=config.dropout,
        )
    kind = BidirectionalClassifier if config.bidirectional else RecurrentNetwork
    return kind(
        cell=config.cell,
        tokens=sizes[""],
        outputs=sizes.get("labels", sizes[""]),
        layers=config.layers,
        embedding=config.embedding,
        hidden=config.hidden,
        dropout=config.dropout,
    )
