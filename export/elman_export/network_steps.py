"""The step contract for the networks of `elman_training`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from elman_bundle import BEGIN, END, INNER, InputVocabulary
from elman_export.contract import Output, Source, StepInterface, Tensors, Token, Tree, Values
from elman_training.config import TrainingConfig, TranslationConfig
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.features.feed_forward_network import FeedForwardNetwork
from elman_training.labels.bidirectional_classifier import BidirectionalClassifier
from elman_training.language.recurrent_network import RecurrentNetwork
from elman_training.trees.tree_network import TreeNetwork

_LONGEST_SOURCE = 1024


def step_of_network(
    network: nn.Module, vocabularies: Mapping[str, InputVocabulary], config: TrainingConfig, meaning: Output
) -> tuple[nn.Module, StepInterface]:
    """The step module of a trained network. A new family of models is registered here.

    Args:
        network: the result of `elman_training.checkpoint.load_best`.
        vocabularies: the vocabularies of the run.
        config: the configuration of the run.
        meaning: the meaning of the network's one output.

    Returns:
        A module that satisfies StepModule, and its interface, whose output is named "logits".
    """
    outputs = {"logits": meaning}
    if isinstance(network, EncoderDecoder):
        assert isinstance(config, TranslationConfig)
        return network, _translation_interface(network, vocabularies, config, outputs)
    if isinstance(network, FeedForwardNetwork):
        return FeaturesStep(network), StepInterface({"features": Values(network.mean.shape)}, outputs)
    if isinstance(network, BidirectionalClassifier):
        return BidirectionalStep(network), StepInterface(
            inputs={},
            outputs=outputs,
            constants={"features": Values((network.head.in_features,))},
            source=Source(Token(vocabularies[""]), _LONGEST_SOURCE),
        )
    inputs = {"token": Token(vocabularies[""])}
    if isinstance(network, TreeNetwork):
        tree = Tree(network.cell.child_count, int(vocabularies[""].encode(INNER)[0]))
        return TreeStep(network), StepInterface(inputs, outputs, tree=tree)
    assert isinstance(network, RecurrentNetwork)
    return NetworkStep(network), StepInterface(inputs, outputs)


def _translation_interface(
    network: EncoderDecoder,
    vocabularies: Mapping[str, InputVocabulary],
    config: TranslationConfig,
    outputs: Mapping[str, Output],
) -> StepInterface:
    """The interface of an EncoderDecoder, which satisfies the contract itself."""
    vocabulary = vocabularies[""]
    begin, end = (int(vocabulary.encode(token)[0]) for token in (BEGIN, END))
    with torch.no_grad():
        constants, _ = network.encode(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    return StepInterface(
        inputs={"token": Token(vocabulary, begin_id=begin, end_id=end)},
        outputs=outputs,
        constants={name: Values(value.shape[2:], variable_length=True) for name, value in constants.items()},
        source=Source(Token(vocabularies["source-"]), config.longest_source),
    )


class NetworkStep(nn.Module):
    """The step of a RecurrentNetwork, with the embedding folded into the input gates of the first layer.

    The contribution of a token to the first layer's gates depends on the token alone, so it is looked up: one row of a
    [V, gates * H] table instead of an embedding and a matrix product.
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
    """The step of a TreeNetwork at a node, with the embedding folded into the gates as in NetworkStep."""

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
    """A BidirectionalClassifier as an encoder that reads the whole text and one step that classifies it."""

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
    """A FeedForwardNetwork as one step without state."""

    def __init__(self, network: FeedForwardNetwork) -> None:
        super().__init__()
        self.network = network

    def initial_state(self, rows: int) -> Tensors:
        return {}

    def step(self, inputs: Tensors, constants: Tensors, state: Tensors) -> tuple[Tensors, Tensors]:
        return {"logits": self.network(inputs["features"])}, {}
