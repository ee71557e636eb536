"""Choosing among continuations: what goes before them is read once, every choice goes on from its state."""

from __future__ import annotations

import contextlib

import numpy as np

from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_server.rpc.models import ServedModel
from elman_server.rpc.prefill import Prefill
from elman_server.rpc.scoring import Scoring
from elman_server.rpc.several import encode_all
from elman_server.rpc.validation import Limits, choice_ids

MOST_CHOICES = 1024


async def requested_choices(request: v1.ChooseRequest, model: ServedModel, limits: Limits) -> list[TokenIds]:
    """The ids of every choice, each with the end token behind it where the model has one and the request does not leave
    it out.

    Raises:
        InvalidFieldError: there are too few or too many, or one is empty or cannot be encoded.
    """
    end = [] if request.open_ended or model.end_token is None else [model.end_token]

    async def encode(given: v1.Choice, field: str) -> TokenIds:
        return np.concatenate([await choice_ids(given, field, model, limits), end]).astype(np.int64)

    return await encode_all(request.choices, "choices", encode, limits, least=2, most=MOST_CHOICES)


async def choose(prompt: Prefill, ids: TokenIds, choices: list[TokenIds]) -> v1.ChooseResponse:
    """Which of some choices is the most probable.

    Args:
        prompt: what goes before them, read but for its last token.
        ids: its tokens.
        choices: theirs.

    Raises:
        ModelFailedError: the model failed on one, or has shown what is no number.
        DomainError: what else keeps one from its end.
    """
    model = prompt.model
    scoring = Scoring(model, ids, prompt.state, prompt.source, totals_only=True, longest=1, field="choices")
    response = v1.ChooseResponse(model=model.name, digest=model.bundle.digest)
    if prompt.source is not None:
        response.source_unknown_count = model.count_unknown_source(prompt.source.values)
    async with contextlib.aclosing(scoring.scores(choices)) as found:
        async for scores in found:
            for one in scores:
                response.scores.add(
                    log_likelihood=one.total.log_likelihood,
                    token_count=one.total.token_count,
                    unknown_token_count=one.total.unknown_token_count,
                )
    likelihoods = np.array([score.log_likelihood for score in response.scores])
    response.choice_index = int(likelihoods.argmax())
    largest = likelihoods.max()
    if np.isfinite(largest):  # Else the model excludes every choice, and none of them has a share.
        weights = np.exp(likelihoods - largest)
        for score, weight in zip(response.scores, (weights / weights.sum()).tolist(), strict=True):
            score.probability = weight
    return response
