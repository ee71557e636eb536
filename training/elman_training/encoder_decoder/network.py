"""The encoder-decoder: one sequence in, another one out (Sutskever et al. 2014).

The encoder reads the whole source; in a bidirectional encoder, half of the units read it backwards (Schuster and
Paliwal 1997). The last output of each encoder layer is the initial hidden state of the decoder layer at the same depth;
an LSTM's cell starts at zero. With attention (Bahdanau et al. 2015) the decoder also reads every position of the
source.

The arrangement trains fast on a CPU: the recurrence does not read the context of the attention, so it runs over the
whole target in one fused call, and attention is computed from its outputs for all target positions at once (as in
Luong et al. 2015). A tanh layer joins both to the features of the logits, whose matrix is also the embedding of the
target (Press and Wolf 2017).

Axes: B rows, S source positions, T target positions, V tokens, E embedding features, H hidden units, A units of
attention, L layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from elman_training.cells import make_cell
from elman_training.cells.cell import State
from elman_training.cells.stack import CellStack, at_last_step, reversed_rows, run_layer, state_name
from elman_training.encoder_decoder.attention import Attention


class TokenFeatures(nn.Module):
    """The features of a token: a learned vector, or a one-hot vector.

    Args:
        tokens: V.
        embedding: E; None for one-hot features.

    Attributes:
        features: the number of features of a token: E or V.
    """

    def __init__(self, tokens: int, embedding: int | None) -> None:
        super().__init__()
        self.features = embedding or tokens
        self.embedding = None if embedding is None else nn.Embedding(tokens, embedding)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=self.features**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Ids [...] to features [..., E]."""
        if self.embedding is None:
            return functional.one_hot(tokens, self.features).float()
        return cast(Tensor, self.embedding(tokens))


class Encoder(nn.Module):
    """Recurrent layers over a padded source, left to right or in both directions.

    The backward direction reads each row reversed within its own length. So padding comes last for both directions and
    changes nothing before it.

    Args:
        cell: the cell's name in `elman_training.cells.CELLS`.
        inputs: E.
        hidden: H, of both directions together.
        layers: L.
        bidirectional: whether half of the units read backwards.
        dropout: the share of activations dropped before each layer while training.
    """

    def __init__(
        self, *, cell: str, inputs: int, hidden: int, layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        units = hidden // 2 if bidirectional else hidden
        sizes = [inputs, *[hidden] * layers]
        self.forwards = nn.ModuleList([make_cell(cell, before, units) for before in sizes[:-1]])
        self.backwards = nn.ModuleList([make_cell(cell, before, units) for before in sizes[:-1] if bidirectional])
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Read sources.

        Args:
            features: [B, S, E].
            lengths: int64 [B].

        Returns:
            The outputs of the last layer, [B, S, H], undefined after the end of a source; and the last output of each
            layer, [B, H] each.
        """
        ends = []
        for index, layer in enumerate(self.forwards):
            features = self.dropout(features)
            outputs = run_layer(layer, features)
            end = at_last_step(outputs, lengths)
            if self.backwards:
                reverse = run_layer(self.backwards[index], reversed_rows(features, lengths))
                end = torch.cat([end, at_last_step(reverse, lengths)], dim=-1)
                outputs = torch.cat([outputs, reversed_rows(reverse, lengths)], dim=-1)
            features = outputs
            ends.append(end)
        return self.dropout(features), ends


class EncoderDecoder(CellStack):
    """Source tokens in, target tokens out.

    It satisfies the contract of `elman_export.contract.EncoderModule` and `StepModule`; `forward` computes the same
    over a whole known target.

    Args:
        cell: the cell's name in `elman_training.cells.CELLS`.
        source_tokens: V of the source.
        tokens: V of the target.
        layers: L, of the encoder and of the decoder.
        embedding: E; also the number of features of the logits, and A of the attention.
        hidden: H, even for a bidirectional encoder.
        attention: "additive" or "multiplicative"; None for a decoder that knows only its initial state.
        bidirectional: whether half of the encoder reads backwards.
        one_hot: whether tokens have one-hot features instead of learned ones; the logits then have a matrix of their
            own.
        dropout: the share of activations dropped before each layer and the logits while training.
        source_deviation: the initial standard deviation of the source's embedding; None for 1 / sqrt(E).
    """

    def __init__(
        self,
        *,
        cell: str,
        source_tokens: int,
        tokens: int,
        layers: int,
        embedding: int,
        hidden: int,
        attention: str | None,
        bidirectional: bool,
        one_hot: bool,
        dropout: float,
        source_deviation: float | None = None,
    ) -> None:
        super().__init__()
        self.source_features = TokenFeatures(source_tokens, None if one_hot else embedding)
        if source_deviation is not None and self.source_features.embedding is not None:
            nn.init.normal_(self.source_features.embedding.weight, std=source_deviation)
        self.target_features = TokenFeatures(tokens, None if one_hot else embedding)
        self.encoder = Encoder(
            cell=cell, inputs=self.source_features.features, hidden=hidden, layers=layers,
            bidirectional=bidirectional, dropout=dropout,
        )  # fmt: skip
        sizes = [self.target_features.features, *[hidden] * layers]
        self.layers = nn.ModuleList([make_cell(cell, before, after) for before, after in pairwise(sizes)])
        self.attention = Attention(hidden, embedding, additive=attention == "additive") if attention else None
        self.readout = nn.Linear(2 * hidden if attention else hidden, embedding)
        self.head = nn.Linear(embedding, tokens)
        if self.target_features.embedding is not None:
            self.head.weight = self.target_features.embedding.weight
        self.dropout = nn.Dropout(dropout)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the names of their vocabularies in a run; empty with one-hot
        features."""
        tables = {"source-": self.source_features.embedding, "": self.target_features.embedding}
        return {name: table.weight for name, table in tables.items() if table is not None}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read sources.

        Args:
            source: token ids [B, S]; any value after the end of a row.
            lengths: int64 [B], at least 1.

        Returns:
            The constants of `Attention.constants`, none without attention; and the initial hidden states of the
            decoder, [B, H] each.
        """
        memory, ends = self.encoder(self.source_features(source), lengths)
        constants = {} if self.attention is None else self.attention.constants(memory, lengths)
        return constants, {state_name(index, "hidden"): end for index, end in enumerate(ends)}

    def start(self, source: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`encode` with the complete initial state."""
        constants, encoded = self.encode(source, lengths)
        return constants, {**self.initial_state(len(source)), **encoded}

    def step(
        self, inputs: Mapping[str, Tensor], constants: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Decode one step.

        Args:
            inputs: {"token": int64 [B]}.
            constants: of `encode`.
            state: [B, H] by name.

        Returns:
            {"logits": [B, V]} and the next state.
        """
        features, after = self.step_layers(self.target_features(inputs["token"]), state)
        return {"logits": self._logits(features[:, None], constants)[:, 0]}, after

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Compute the logits after each token of a known target (teacher forcing).

        Args:
            source: token ids [B, S].
            lengths: int64 [B], at least 1.
            target: token ids [B, T].

        Returns:
            The logits, [B, T, V].
        """
        constants, state = self.start(source, lengths)
        features, _ = self.run_layers(self.target_features(target), state)
        return self._logits(features, constants)

    def _logits(self, outputs: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """The outputs of the last layer, [B, T, H], to logits [B, T, V]."""
        if self.attention is not None:
            outputs = torch.cat([outputs, self.attention(outputs, constants).to(outputs.dtype)], dim=-1)
        readout = torch.tanh(self.readout(self.dropout(outputs)))
        return cast(Tensor, self.head(self.dropout(readout)))
