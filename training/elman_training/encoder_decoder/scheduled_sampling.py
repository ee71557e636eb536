"""Scheduled sampling (Bengio et al. 2015): decoder inputs that are partly drawn from the network itself."""

from __future__ import annotations

import torch
from torch import Tensor

from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.encoder_decoder.pair_batches import PairBatch


@torch.no_grad()
def sample_inputs(network: EncoderDecoder, batch: PairBatch, share: float) -> Tensor:
    """Replace a share of the decoder's inputs.

    Each token but the first is, with probability `share`, drawn from the network's own distribution after the inputs
    before it, drawn ones among them. No gradient flows through the draw, so the loss of the result under teacher
    forcing is the loss of scheduled sampling.

    Args:
        network: in training mode, so with dropout.
        batch: the pairs, with the true inputs of the decoder.
        share: the probability of a drawn token.

    Returns:
        Token ids [B, T].
    """
    constants, state = network.start(batch.source, batch.lengths)
    sampled = [batch.inputs[:, 0]]
    for position in range(1, batch.inputs.shape[1]):
        outputs, state = network.step({"token": sampled[-1]}, constants, state)
        drawn = torch.multinomial(torch.softmax(outputs["logits"].float(), dim=-1), 1)[:, 0]
        sampled.append(torch.where(torch.rand(len(drawn)) < share, drawn, batch.inputs[:, position]))
    return torch.stack(sampled, dim=1)
