"""From a request of AnalysisService to what is read. Every complaint names the field, what is wrong and what would be
right."""

from __future__ import annotations

from collections.abc import Sequence

from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_server.errors import InvalidFieldError
from elman_server.rpc.models import ServedModel
from elman_server.rpc.several import encode_all
from elman_server.rpc.validation import Limits, analysis_ids

MOST_INPUTS = 16_384


async def context_ids(request: v1.ScoreRequest, model: ServedModel, limits: Limits) -> TokenIds:
    """What goes before every candidate, the begin token first where the model has one; may be nothing.

    Raises:
        InvalidFieldError: it cannot be encoded.
    """
    return model.with_begin_token(await analysis_ids(request.context, "context", model, limits))


async def candidate_ids(
    request: v1.ScoreRequest, context_length: int, model: ServedModel, limits: Limits
) -> list[TokenIds]:
    """The candidates' ids.

    Args:
        request: what is asked.
        context_length: how many tokens go before them.
        model: what scores.
        limits: what may be asked for.

    Raises:
        InvalidFieldError: there are none or too many, or one is empty, cannot be encoded, or has nothing to be scored.
    """
    candidates = await _all_ids(request.candidates, "candidates", context_length, model, limits)
    for index, ids in enumerate(candidates):
        if len(ids) == 1 and not context_length:
            raise InvalidFieldError(
                f"candidates[{index}]",
                "one token without a context",
                "a first token has no probability",
                "Give a context, or two tokens or more",
            )
    return candidates


async def embedded_ids(request: v1.EmbedRequest, model: ServedModel, limits: Limits) -> list[TokenIds]:
    """The inputs' ids, the begin token first where the model generates and has one.

    Raises:
        InvalidFieldError: there are none or too many, or one is empty or cannot be encoded.
    """
    inputs = await _all_ids(request.inputs, "inputs", 0, model, limits)
    return [model.with_begin_token(ids) for ids in inputs]


async def inspected_ids(request: v1.InspectRequest, model: ServedModel, limits: Limits) -> TokenIds:
    """The input's ids, the begin token first where the model generates and has one.

    Raises:
        InvalidFieldError: it is empty or cannot be encoded.
    """
    return model.with_begin_token(await _some_ids(request.input, "input", model, limits))


async def _all_ids(
    inputs: Sequence[v1.AnalysisInput], field: str, already: int, model: ServedModel, limits: Limits
) -> list[TokenIds]:
    """The ids of each of some inputs that together, and with so many tokens before them, may not be too long."""

    async def encode(given: v1.AnalysisInput, field: str) -> TokenIds:
        return await _some_ids(given, field, model, limits)

    return await encode_all(inputs, field, encode, limits, least=1, most=MOST_INPUTS, already=already)


async def _some_ids(given: v1.AnalysisInput, field: str, model: ServedModel, limits: Limits) -> TokenIds:
    ids = await analysis_ids(given, field, model, limits)
    if not len(ids):
        raise InvalidFieldError(field, "an empty input", "there is nothing to read")
    return ids
