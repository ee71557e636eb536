"""The use case Choose: the most probable of given continuations of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from elman_server.errors import InvalidFieldError
from elman_server.inference.input_forms import Input
from elman_server.inference.inputs import EncodedInput, read_all, read_prompt, read_tokens
from elman_server.inference.model import ServedModel
from elman_server.inference.prefill import read_all_but_last
from elman_server.inference.resources import Resources
from elman_server.inference.score import CandidateScore, Scorer
from elman_server.inference.sources import read_source

MAX_CHOICES = 1024


@dataclass(frozen=True)
class ChooseRequest:
    """A request to choose among continuations.

    Attributes:
        model: name of the model; "" for the only one that suits.
        prompt: what goes before every choice; None for nothing.
        choices: the continuations.
        source: what the encoder reads; None for nothing.
        open_ended: whether a choice is scored without the end token.
        bypass_prefix_cache: whether the prompt is read in full.
    """

    model: str = ""
    prompt: Input | None = None
    choices: Sequence[Input] = ()
    source: Input | None = None
    open_ended: bool = False
    bypass_prefix_cache: bool = False


@dataclass(frozen=True)
class Choice:
    """The most probable of some continuations.

    Attributes:
        model: name of the model.
        digest: digest of its bundle.
        index: the choice with the largest log-likelihood; of equals the first.
        scores: of each choice.
        probabilities: the share of each choice in the probability of all; 0 where the model excludes all of them.
        source_unknown_count: how many positions of the source the encoder's vocabulary does not have.
        unknown_token_count: how many tokens of the prompt the vocabulary does not have.
    """

    model: str
    digest: str
    index: int
    scores: list[CandidateScore]
    probabilities: list[float]
    source_unknown_count: int
    unknown_token_count: int


async def choose(resources: Resources, request: ChooseRequest, caller: str) -> Choice:
    """Answer a request.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller, whose prefix cache is used.

    Raises:
        DomainError: why it cannot be answered.
    """
    model, limits = resources.models.that_generates(request.model), resources.limits
    source = await read_source(request.source, model, limits)
    prompt = await read_prompt(request.prompt, model, limits)
    choices = await _read_choices(request, model, resources)
    bypass = request.bypass_prefix_cache or source is not None
    prefix = resources.prefixes.look_up(model.bundle.digest, caller, prompt.ids, bypass=bypass)
    encoder_source = source.source if source else None
    begin = await read_all_but_last(model, prompt.ids, prefix, encoder_source)
    scorer = Scorer(model, prompt.ids, begin.state, encoder_source, texts=False)
    scores: list[CandidateScore] = []
    async with aclosing(scorer.scores(choices, "choices")) as found:
        async for some in found:
            scores += some
    likelihoods = np.array([score.log_likelihood for score in scores])
    largest = likelihoods.max()
    probabilities = np.zeros(len(scores))
    if np.isfinite(largest):  # Else the model excludes every choice.
        weights = np.exp(likelihoods - largest)
        probabilities = weights / weights.sum()
    return Choice(
        model.name,
        model.bundle.digest,
        int(likelihoods.argmax()),
        scores,
        probabilities.tolist(),
        source.unknown_count if source else 0,
        prompt.unknown_count,
    )


async def _read_choices(request: ChooseRequest, model: ServedModel, resources: Resources) -> list[EncodedInput]:
    """Return the choices, each with the end token if the model has one and the request does not leave it out."""
    end = [] if request.open_ended or model.end_token is None else [model.end_token]

    async def read(given: Input) -> EncodedInput:
        read = await read_tokens(given, model, resources.limits)
        if not len(read.ids):
            raise InvalidFieldError(given.field, "an empty choice", "a choice has one token or more")
        return EncodedInput(np.concatenate([read.ids, end]).astype(np.int64), read.unknown_count)

    return await read_all(request.choices, "choices", read, resources.limits, least=2, most=MAX_CHOICES)
