"""ChooseResponse."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.choose import Choice


def choose_response(choice: Choice) -> v1.ChooseResponse:
    """Return the message of a choice."""
    scores = [
        v1.ChoiceScore(
            log_likelihood=score.log_likelihood,
            token_count=score.token_count,
            probability=probability,
            unknown_token_count=score.unknown_token_count,
        )
        for score, probability in zip(choice.scores, choice.probabilities, strict=True)
    ]
    return v1.ChooseResponse(
        model=choice.model,
        digest=choice.digest,
        choice_index=choice.index,
        scores=scores,
        source_unknown_count=choice.source_unknown_count,
        unknown_token_count=choice.unknown_token_count,
    )
