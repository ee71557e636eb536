"""Recursive networks: a tree cell and a head that labels every node.

Axes: B nodes, C children, V tokens, E embedding features, H hidden units, G gates, N nodes of a batch of trees.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from elman_training.cells.cell import State
from elman_training.trees import tree_cell_class
from elman_training.trees.tree_batches import TreeBatch


class TreeNetwork(nn.Module):
    """Trees in, one vector of logits out at every node.

    Args:
        cell: the cell's name in `elman_training.trees.TREE_CELLS`.
        tokens: V, the size of the vocabulary.
        outputs: the number of labels.
        embedding: E.
        hidden: H.
        dropout: the share of embedding features, and of activations before the head, dropped while training.
    """

    def __init__(
        self,
        *,
        cell: str,
        tokens: int,
        outputs: int,
        embedding: int,
        hidden: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, embedding)
        nn.init.normal_(self.embedding.weight, std=embedding**-0.5)
        self.cell = tree_cell_class(cell)(embedding, hidden)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, outputs)

    @property
    def state_bounds(self) -> dict[str, float]:
        """The largest magnitude of each bounded state."""
        return dict(self.cell.state_bounds)

    @property
    def embeddings(self) -> dict[str, Tensor]:
        """The vectors of the tokens, [V, E], by the name of their vocabulary in a run."""
        return {"": self.embedding.weight}

    def initial_state(self, rows: int) -> dict[str, Tensor]:
        """The states of a missing child: zeros, [B, H] each."""
        return self.cell.initial_state(rows)

    def step(self, inputs: State, constants: State, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute one node of each row.

        Args:
            inputs: {"token": int64 [B]}.
            constants: none.
            state: the states of the children, [B, C, H] by name.

        Returns:
            {"logits": [B, labels]}, and the nodes' own states, [B, H] by name.
        """
        return self.step_from_projected(self.cell.project(self.embedding(inputs["token"])), state)

    def step_from_projected(self, projected: Tensor, state: State) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Compute the step after the cell's `project`."""
        after = self.cell.advance(projected, state)
        return {"logits": self.head(after["hidden"])}, after

    def forward(self, batch: TreeBatch) -> Tensor:
        """The logits at every node of a batch, [N, labels], in the batch's order."""
        projected = self.cell.project(self.dropout(self.embedding(batch.tokens)))
        known = self.initial_state(1)  # Row 0 is the missing child; node k has row k + 1.
        # One split: the gradient of each of many slices would be as large as the whole.
        by_level = projected.split_with_sizes([len(children) for children in batch.levels])
        for of_level, children in zip(by_level, batch.levels, strict=True):
            after = self.cell.advance(of_level, {name: value[children] for name, value in known.items()})
            known = {name: torch.cat([value, after[name]]) for name, value in known.items()}
        return cast(Tensor, self.head(self.dropout(known["hidden"][1:])))
