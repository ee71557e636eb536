"""The task and the network of each kind of configuration. A new family of models is registered here."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from elman_training.class_labels import check_labels
from elman_training.config import FeaturesConfig, TrainingConfig, TranslationConfig, TreeConfig
from elman_training.corpus_files import Note, no_note
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.encoder_decoder.pair_corpus import read_pairs
from elman_training.encoder_decoder.translation_task import TranslationTask
from elman_training.features.features_task import FeaturesTask
from elman_training.features.feed_forward_network import FeedForwardNetwork
from elman_training.features.table_corpus import read_table
from elman_training.labels.bidirectional_classifier import BidirectionalClassifier
from elman_training.labels.classification_task import ClassificationTask
from elman_training.labels.example_parts import read_example_parts
from elman_training.labels.tagged_text import read_labelled_text
from elman_training.labels.tagging_task import TaggingTask
from elman_training.language.language_task import LanguageTask
from elman_training.language.recurrent_network import RecurrentNetwork
from elman_training.language.text_corpus import read_text
from elman_training.task import Task
from elman_training.trees.tree_network import TreeNetwork
from elman_training.trees.tree_task import TreeTask
from elman_training.trees.treebank import read_treebank


def make_task(config: TrainingConfig, note: Note = no_note) -> Task:
    """Make the task of a configuration and read its corpus.

    Args:
        config: the configuration.
        note: called with what was left out of the corpus, and with its classes.

    Raises:
        TrainingError: the corpus cannot be read or is too small, or two of its labels are most probably one.
    """
    task = _read_task(config, note)
    if task.label_counts:
        check_labels(config.corpus, task.label_counts, note)
    return task


def _read_task(config: TrainingConfig, note: Note) -> Task:
    if isinstance(config, TranslationConfig):
        return TranslationTask(config, read_pairs(config.corpus, config.held_out, config.seed, note), note)
    if isinstance(config, FeaturesConfig):
        return FeaturesTask(config, read_table(config.corpus, note))
    if isinstance(config, TreeConfig):
        return TreeTask(config, read_treebank(config.corpus, note))
    if config.task == "classify":
        return ClassificationTask(config, read_example_parts(config, note))
    if config.task == "tag":
        return TaggingTask(config, read_labelled_text(config.corpus, config.corpus_limit, note))
    return LanguageTask(config, read_text(config.corpus, note)[: config.corpus_limit])


def make_network(config: TrainingConfig, sizes: Mapping[str, int]) -> nn.Module:
    """Make the untrained network of a configuration. Its initial weights depend on the seed alone.

    Args:
        config: the configuration.
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
