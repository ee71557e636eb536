"""Choosing among continuations: what goes before them is read once, every choice goes on from its state."""

from __future__ import annotations

import contextlib

import numpy as np

from bundle.vocabulary import TokenIds
from elman import v1
from server.rpc.errors import FieldError, InputTooLongError
from server.rpc.models import ServedModel
from server.rpc.prefill import Prefill
from server.rpc.scoring import Scoring
from server.rpc.validation import Limits, choice_ids

MOST_CHOICES = 1024


async def requested_choices(request: v1.ChooseRequest, model: ServedModel, limits: Limits) -> list[TokenIds]:
    """The ids of every choice, each with the end token behind it where the model has one and the request does not leave
    it out.

    Raises:
        FieldError: there are too few or too many, or one is empty or cannot be encoded.
    """
    count = len(request.choices)
    if not 2 <= count <= MOST_CHOICES:
        raise FieldError("choices", f"are {count}, but there must be 2 to {MOST_CHOICES} to choose among")
    end = [] if request.open_ended or model.end_token is None else [model.end_token]
    choices: list[TokenIds] = []
    total = 0
    for index, choice in enumerate(request.choices):
        ids = await choice_ids(choice, f"choices[{index}]", model, limits)
        choices.append(np.concatenate([ids, end]).astype(np.int64))
        total += len(ids)
        if total > limits.total_tokens:
            message = f"have {total} tokens or more together, the limit is {limits.total_tokens}"
            raise InputTooLongError("choices", message, limit=limits.total_tokens)
    return choices


async def choose(prompt: Prefill, ids: TokenIds, choices: list[TokenIds]) -> v1.ChooseResponse:
    """Which of some choices is the most probable.

    Args:
        prompt: what goes before them, read but for its last token.
        ids: its tokens.
        choices: theirs.

    Raises:
        ModelFailedError: the model failed on one, or has shown what is no number.
        SchedulingError: what else keeps one from its end.
    """
    model = prompt.model
    scoring = Scoring(model, ids, prompt.state, prompt.source, totals_only=True, longest=1, field="choices")
    response = v1.ChooseResponse(model=model.name, digest=model.bundle.digest)
    async with contextlib.aclosing(scoring.scores(choices)) as found:
        async for scores in found:
            for one in scores:
                response.scores.add(log_likelihood=one.total.log_likelihood, token_count=one.total.token_count)
    likelihoods = np.array([score.log_likelihood for score in response.scores])
    response.choice_index = int(likelihoods.argmax())
    # Where the model excludes every choice, none of them has a share.
    largest = likelihoods.max()
    weights = np.exp(likelihoods - largest) if np.isfinite(largest) else np.ones(len(likelihoods))
    for score, weight in zip(response.scores, (weights / weights.sum()).tolist(), strict=True):
        score.probability = weight
    return response
