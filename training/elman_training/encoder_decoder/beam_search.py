"""Beam search over many sources at once, in torch, for the figures of encoder-decoders.

It searches as the server does by default, and is an oracle for `elman_server.decoding.beams`: the `width` best
continuations that do not end stay live; one that ends is a hypothesis if it is among the `width` best of all; the score
of a hypothesis is its log-probability divided by its length, with the end token; and the search of a source is over
when no live beam, if it ended now, would score higher than the worst of `width` hypotheses.

Axes: N sources, W beams of each, V tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from elman_training.encoder_decoder.network import EncoderDecoder


@torch.no_grad()
def beam_search(
    network: EncoderDecoder, source: Tensor, lengths: Tensor, *, begin: int, end: int, width: int, longest: int
) -> list[list[int]]:
    """Find the best target of each source.

    Args:
        network: in evaluation mode.
        source: token ids [N, S].
        lengths: int64 [N].
        begin: the token that starts a target.
        end: the token that ends a target.
        width: W.
        longest: the largest number of tokens of a target, with the end token.

    Returns:
        Token ids, without the end token.
    """
    rows = len(source)
    constants, state = network.start(source, lengths)
    constants, state = _repeat(constants, width), _repeat(state, width)
    tokens = torch.full((rows * width,), begin)
    sums = torch.full((rows, width), -math.inf, dtype=torch.float64)
    sums[:, 0] = 0.0  # At first all beams are the same.
    paths = torch.empty(rows, width, 0, dtype=torch.int64)
    found = _Hypotheses(rows, width, longest)
    running = torch.ones(rows, dtype=torch.bool)
    for step in range(1, longest + 1):
        outputs, state = network.step({"token": tokens}, constants, state)
        scores = functional.log_softmax(outputs["logits"].double(), dim=-1).view(rows, width, -1)
        # At most one continuation of each beam ends, so at least W of the best 2W do not.
        best, flat = (sums[..., None] + scores).flatten(1).topk(2 * width)  # [N, 2W], the best first
        beams, chosen = flat // scores.shape[-1], flat % scores.shape[-1]
        ends = chosen == end
        finished = ends[:, :width] & running[:, None]
        found.add(best[:, :width].masked_fill(~finished, -math.inf), _at(paths, beams[:, :width]), step)
        live = ends.to(torch.int8).sort(dim=1, stable=True).indices[:, :width]  # The first W that do not end.
        sums, beams, chosen = best.gather(1, live), beams.gather(1, live), chosen.gather(1, live)
        paths = torch.cat([_at(paths, beams), chosen[..., None]], dim=-1)
        running &= sums[:, 0] / step > found.scores[:, -1]
        if step == longest:
            found.add(sums.masked_fill(~running[:, None], -math.inf), paths, step)
        if not running.any():
            break
        rows_before = (beams + torch.arange(rows)[:, None] * width).flatten()
        state = {name: value[rows_before] for name, value in state.items()}
        tokens = chosen.flatten()
    return found.best()


class _Hypotheses:
    """The W best hypotheses of each source, the best first.

    Attributes:
        scores: float64 [N, W], -inf where there is none yet.
    """

    def __init__(self, rows: int, width: int, longest: int) -> None:
        self.scores = torch.full((rows, width), -math.inf, dtype=torch.float64)
        self._paths = torch.zeros(rows, width, longest, dtype=torch.int64)
        self._sizes = torch.zeros(rows, width, dtype=torch.int64)

    def add(self, log_probabilities: Tensor, paths: Tensor, length: int) -> None:
        """Add hypotheses of one length, [N, W, ...]; a log-probability of -inf stands for none."""
        width, longest = self._paths.shape[1:]
        padded = functional.pad(paths, (0, longest - paths.shape[-1]))
        scores = torch.cat([self.scores, log_probabilities / length], dim=1)
        sizes = torch.cat([self._sizes, torch.full_like(self._sizes, paths.shape[-1])], dim=1)
        # Stable, so that of equal hypotheses the one that ended first comes first.
        self.scores, order = (part[:, :width] for part in scores.sort(dim=1, descending=True, stable=True))
        self._sizes = sizes.gather(1, order)
        self._paths = _at(torch.cat([self._paths, padded], dim=1), order)

    def best(self) -> list[list[int]]:
        return [path[:size].tolist() for path, size in zip(self._paths[:, 0], self._sizes[:, 0], strict=True)]


def _repeat(tensors: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: value.repeat_interleave(times, dim=0) for name, value in tensors.items()}


def _at(paths: Tensor, beams: Tensor) -> Tensor:
    """Select beams: paths [N, W, T] and beams [N, C] to [N, C, T]."""
    return paths.gather(1, beams[..., None].expand(-1, -1, paths.shape[-1]))
