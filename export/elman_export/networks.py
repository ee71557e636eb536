"""The networks of our own training behind the same contract as anybody's module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from elman_bundle import BEGIN, END, INNER, InputVocabulary
from elman_export.contract import Input, Source, Tensors, Token, Tree, Values
from elman_training.config import TrainingConfig, TranslationConfig
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.features.feed_forward_network import FeedForwardNetwork
from elman_training.labels.bidirectional_classifier import BidirectionalClassifier
from elman_training.language.recurrent_network import RecurrentNetwork
from elman_training.trees.tree_network import TreeNetwork

_LONGEST_SOURCE = 1024


@dataclass(frozen=True)
class ExportedNetwork:
    """A network and what its inputs are; its one output is named "logits".

    Attributes:
        module: keeps the contract of StepModule.
        inputs: see `export_bundle`.
        constants: see `export_bundle`.
        source: see `export_bundle`.
        tree: see `export_bundle`.
    """

    module: nn.Module
    inputs: Mapping[str, Input]
    constants: Mapping[str, Values] = field(default_factory=dict)
    source: Source | None = None
    tree: Tree | None = None


def as_module(
    network: nn.Module, vocabularies: Mapping[str, InputVocabulary], config: TrainingConfig
) -> ExportedNetwork:
    """Put a trained network behind the contract.

    Args:
        network: what `elman_training.checkpoint.load_best` gives.
        vocabularies: of the run.
        config: of the run.
    """
    if isinstance(network, EncoderDecoder):
        assert isinstance(config, TranslationConfig)
        return _translation(network, vocabularies, config)
    if isinstance(network, FeedForwardNetwork):
        return ExportedNetwork(FeaturesStep(network), {"features": Values(network.mean.shape)})
    if isinstance(network, BidirectionalClassifier):
        return ExportedNetwork(
            BidirectionalStep(network),
            inputs={},
            constants={"features": Values((network.head.in_features,))},
            source=Source(Token(vocabularies[""]), _LONGEST_SOURCE),
        )
    if isinstance(network, TreeNetwork):
        words = vocabularies[""]
        tree = Tree(network.cell.child_count, int(words.encode(INNER)[0]))
        return ExportedNetwork(TreeStep(network), {"token": Token(words)}, tree=tree)
    assert isinstance(network, RecurrentNetwork)
    return ExportedNetwork(NetworkStep(network), {"token": Token(vocabularies[""])})


def _translation(
    network: EncoderDecoder, vocabularies: Mapping[str, InputVocabulary], config: TranslationConfig
) -> ExportedNetwork:
    """An EncoderDecoder, which keeps the contract itself."""
    vocabulary = vocabularies[""]
    begin, end = (int(vocabulary.encode(token)[0]) for token in (BEGIN, END))
    with torch.no_grad():
        constants, _ = network.encode(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    return ExportedNetwork(
        network,
        {"token": Token(vocabulary, begin_id=begin, end_id=end)},
        constants={name: Values(value.shape[2:], variable_length=True) for name, value in constants.items()},
        source=Source(Token(vocabularies["source-"]), config.longest_source),
    )


class NetworkStep(nn.Module):
    """A RecurrentNetwork's step with the embedding folded into the first layer's input gates.

    What the first layer computes from a token before it meets the state depends on the token alone, so it is looked
    up: one row of a [V, gates * H] table instead of an embedding and a matrix product.
    """

    table: Tensor

    def __init__(self, network: RecurrentNetwork) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.register_buffer("table", network.cells[0].project(network.embedding.weight))
        self.state_bounds = network.state_bounds

    def initial_state(self, rows: int) -> Tensors:
        return self.network.initial_state(rows)

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        logits, after = self.network.step_from_projected(functional.embedding(inputs["token"], self.table), state)
        return {"logits": logits}, after


class TreeStep(nn.Module):
    """A TreeNetwork's step at a node, with the embedding folded into the input gates as NetworkStep does."""

    table: Tensor

    def __init__(self, network: TreeNetwork) -> None:
        super().__init__()
        self.network = network
        with torch.no_grad():
            self.register_buffer("table", network.cell.project(network.embedding.weight))

    def initial_state(self, rows: int) -> Tensors:
        return self.network.initial_state(rows)

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return self.network.step_from_projected(functional.embedding(inputs["token"], self.table), state)


class BidirectionalStep(nn.Module):
    """A BidirectionalClassifier: the encoder reads all of the text, and the one step says what it is."""

    def __init__(self, network: BidirectionalClassifier) -> None:
        super().__init__()
        self.network = network

    def initial_state(self, rows: int) -> Tensors:
        return {}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensors, Tensors]:
        return {"features": self.network.features(source, lengths)}, {}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {"logits": self.network.logits(constants["features"])}, {}


class FeaturesStep(nn.Module):
    """A FeedForwardNetwork: one step, no state."""

    def __init__(self, network: FeedForwardNetwork) -> None:
        super().__init__()
        self.network = network

    def initial_state(self, rows: int) -> Tensors:
        return {}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {"logits": self.network(inputs["features"])}, {}
