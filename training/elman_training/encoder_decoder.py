"""The encoder-decoder: one sequence in, another one out (Sutskever et al. 2014), by way of one vector or attention.

The encoder reads the whole source; where it is bidirectional, one half of its units reads it backwards (Schuster and
Paliwal 1997). What each of its layers shows at the end is where the hidden state of the decoder's layer beside it
begins; an LSTM's cell begins at zero. With attention (Bahdanau et al. 2015) the decoder also looks at every
position of the source.

The arrangement is one that trains fast on a CPU: the recurrence does not read what attention found, so that it runs
over the whole target in one fused call and attention is computed from what it shows, for all target positions at once
(as in Luong et al. 2015). A tanh layer joins both to what the logits are read from: by the same matrix that embeds the
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

from elman_training.cells import CELLS, State
from elman_training.layers import Stacked, at_last_step, reversed_rows, run_layer, state_name

_FAR_BELOW = 1e9  # what a position behind the source's end scores below any other


class TokenFeatures(nn.Module):
    """What stands for a token: a learnt vector (a distributed representation), or zeros but for one 1 of its own.

    Args:
        tokens: V.
        embedding: E; None for one-hot features.

    Attributes:
        features: how many numbers stand for a token: E or V.
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

    The backward direction reads each row reversed within its own length, so that padding comes last for both and
    changes nothing before it.

    Args:
        cell: "elman", "lstm" or "gru".
        inputs: E.
        hidden: H, of both directions together.
        layers: L.
        bidirectional: whether half of the units read backwards.
        dropout: the share of activations dropped before each layer, while training.
    """

    def __init__(
        self, *, cell: str, inputs: int, hidden: int, layers: int, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        units = hidden // 2 if bidirectional else hidden
        sizes = [inputs, *[hidden] * layers]
        self.forwards = nn.ModuleList([CELLS[cell](before, units) for before in sizes[:-1]])
        self.backwards = nn.ModuleList([CELLS[cell](before, units) for before in sizes[:-1] if bidirectional])
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Read sources.

        Args:
            features: [B, S, E].
            lengths: int64 [B].

        Returns:
            What the last layer shows at each position, [B, S, H], anything behind the end; and what each layer shows
            where it has read all, [B, H] each.
        """
        ends = []
        for index, layer in enumerate(self.forwards):
            features = self.dropout(features)
            shown = run_layer(layer, features)
            end = at_last_step(shown, lengths)
            if self.backwards:
                reverse = run_layer(self.backwards[index], reversed_rows(features, lengths))
                end = torch.cat([end, at_last_step(reverse, lengths)], dim=-1)
                shown = torch.cat([shown, reversed_rows(reverse, lengths)], dim=-1)
            features = shown
            ends.append(end)
        return self.dropout(features), ends


class Attention(nn.Module):
    """Attention that scores a position by v . tanh(W query + U memory) (additive: Bahdanau et al. 2015) or by
    W query . U memory / sqrt(A) (multiplicative: Luong et al. 2015; Vaswani et al. 2017).

    Args:
        hidden: H, of the query and of the memory.
        units: A, in which the two are compared.
        additive: whether so, or multiplicative.
    """

    def __init__(self, hidden: int, units: int, *, additive: bool) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, units, bias=False)
        self.key = nn.Linear(hidden, units)
        self.score = nn.Linear(units, 1, bias=False) if additive else None

    def constants(self, memory: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """What stays while a sequence is written: "memory" [B, S, H], "keys" [B, S, A] and "mask" [B, S], which is
        1 where the source is; all of them zeros behind its end."""
        mask = (torch.arange(memory.shape[1]) < lengths[:, None]).to(memory.dtype)
        return {"memory": memory * mask[..., None], "keys": self.key(memory) * mask[..., None], "mask": mask}

    def forward(self, shown: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """What a decoder that shows [B, T, H] finds in the memory: [B, T, H].

        Positions behind the end take part with the weight 0 exactly. A softmax over S would let them, so the weights
        are exponentials, masked, and the context is divided by their sum.
        """
        mask = constants["mask"][:, None]  # [B, 1, S]
        query, keys = self.query(shown), constants["keys"]  # [B, T, A], [B, S, A]
        if self.score is not None:
            score = self.score(torch.tanh(query[:, :, None] + keys[:, None]))[..., 0].float()  # [B, T, S]
        else:
            score = (query @ keys.transpose(1, 2)).float() * keys.shape[-1] ** -0.5
        score = score + (mask - 1) * _FAR_BELOW
        weights = torch.exp(score - score.amax(-1, keepdim=True)) * mask
        return (weights @ constants["memory"]) / (weights @ mask.transpose(1, 2))


class EncoderDecoder(Stacked):
    """Source tokens in, target tokens out.

    It keeps the contract of `elman_export.contract.EncoderModule` and `StepModule`; `forward` is the same over a whole
    known target.

    Args:
        cell: "elman", "lstm" or "gru".
        source_tokens: V of the source.
        tokens: V of the target.
        layers: L, of the encoder and of the decoder.
        embedding: E; also of the features that the logits are read from, and A of attention.
        hidden: H, even for a bidirectional encoder.
        attention: "additive" or "multiplicative": how the decoder chooses among the source's positions; None: all it
            knows is its initial state.
        bidirectional: whether half of the encoder reads backwards.
        one_hot: whether one-hot features stand for tokens instead of learnt vectors; the logits then have a matrix of
            their own.
        dropout: the share of activations dropped before each layer and the logits, while training.
        source_deviation: the standard deviation that the source's embedding begins with; None: 1 / sqrt(E).
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
        self.layers = nn.ModuleList([CELLS[cell](before, after) for before, after in pairwise(sizes)])
        self.attention = Attention(hidden, embedding, additive=attention == "additive") if attention else None
        self.readout = nn.Linear(2 * hidden if attention else hidden, embedding)
        self.head = nn.Linear(embedding, tokens)
        if self.target_features.embedding is not None:
            self.head.weight = self.target_features.embedding.weight
        self.dropout = nn.Dropout(dropout)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens that are read, [V, E], by the names that their vocabularies have in a run; none
        where tokens are one-hot."""
        tables = {"source-": self.source_features.embedding, "": self.target_features.embedding}
        return {name: table.weight for name, table in tables.items() if table is not None}

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Read sources.

        Args:
            source: token ids [B, S]; anything behind a row's end.
            lengths: int64 [B], at least 1.

        Returns:
            the constants, see `Attention.constants`; none without attention. And the decoder's hidden states at
            the start, [B, H] each.
        """
        memory, ends = self.encoder(self.source_features(source), lengths)
        constants = {} if self.attention is None else self.attention.constants(memory, lengths)
        return constants, {state_name(index, "hidden"): end for index, end in enumerate(ends)}

    def start(self, source: Tensor, lengths: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """`encode` with the whole initial state."""
        constants, begun = self.encode(source, lengths)
        return constants, {**self.initial_state(len(source)), **begun}

    def step(
        self, inputs: Mapping[str, Tensor], constants: Mapping[str, Tensor], state: State
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step: {"token": int64 [B]}, the constants and the state to {"logits": [B, V]} and the next state."""
        features, after = self.step_layers(self.target_features(inputs["token"]), state)
        return {"logits": self._logits(features[:, None], constants)[:, 0]}, after

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """The logits after each token of a known target (teacher forcing).

        Args:
            source: token ids [B, S].
            lengths: int64 [B], at least 1.
            target: token ids [B, T].

        Returns:
            [B, T, V].
        """
        constants, state = self.start(source, lengths)
        features, _ = self.run_layers(self.target_features(target), state)
        return self._logits(features, constants)

    def _logits(self, shown: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
        """What the last layer shows, [B, T, H], to logits [B, T, V]."""
        if self.attention is not None:
            shown = torch.cat([shown, self.attention(shown, constants).to(shown.dtype)], dim=-1)
        readout = torch.tanh(self.readout(self.dropout(shown)))
        return cast(Tensor, self.head(self.dropout(readout)))
