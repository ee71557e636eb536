"""The responses of AnalysisService."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import numpy as np

from elman_protos import v1
from elman_server.inference.embed import Embeddings, NamedArray
from elman_server.inference.inspect import InspectedSteps, InspectStarted
from elman_server.inference.offload import offload
from elman_server.inference.score import CandidateScore, ScoreStarted
from elman_server.rpc.transport.sizes import grouped

_STREAM_BYTES = 64 * 1024  # of one message of a stream, about, unless the limit is lower
_TOKEN_BYTES = 32  # about what a token of a score takes
_MANY_VALUES = 20_000  # of units; to write more takes milliseconds


class ScoreResponses:
    """Turns the events of Score into messages of limited size.

    Args:
        message_bytes: bytes that one message may have.
    """

    def __init__(self, message_bytes: int) -> None:
        self._bytes = min(_STREAM_BYTES, message_bytes)
        self._tokens = max(1, self._bytes // _TOKEN_BYTES)

    async def of(
        self, events: AsyncIterator[ScoreStarted | list[CandidateScore]]
    ) -> AsyncGenerator[v1.ScoreResponse, None]:
        """Yield the messages of events; the start goes with the first scores."""
        response = v1.ScoreResponse()
        async for event in events:
            if isinstance(event, ScoreStarted):
                response.started.CopyFrom(_score_started(event))
                continue
            parts: list[v1.CandidateScore] = []
            for score in event:
                parts += await offload(len(score.texts), lambda score=score: self._parts(score))  # type: ignore[misc]
            for group in grouped(parts, self._bytes):
                response.scores.extend(group)
                yield response
                response = v1.ScoreResponse()

    def _parts(self, score: CandidateScore) -> list[v1.CandidateScore]:
        """Return the messages of one candidate, a long one in several parts; the last has the total."""
        parts = list(self._token_parts(score)) or [v1.CandidateScore(candidate_index=score.index)]
        parts[-1].total.CopyFrom(
            v1.TotalScore(
                log_likelihood=score.log_likelihood,
                token_count=score.token_count,
                perplexity=score.perplexity,
                unknown_token_count=score.unknown_token_count,
            )
        )
        return parts

    def _token_parts(self, score: CandidateScore) -> Iterator[v1.CandidateScore]:
        for start in range(0, len(score.texts), self._tokens):
            part = slice(start, start + self._tokens)
            tokens = v1.TokenScores(
                ids=score.ids[part].tolist(),
                log_probabilities=score.log_probabilities[part].tolist(),
                texts=score.texts[part],
            )
            yield v1.CandidateScore(candidate_index=score.index, tokens=tokens)


def _score_started(started: ScoreStarted) -> v1.ScoreStarted:
    return v1.ScoreStarted(
        model=started.model,
        digest=started.digest,
        context_token_count=started.context_token_count,
        cached_token_count=started.cached_token_count,
        source_unknown_count=started.source_unknown_count,
        unknown_token_count=started.unknown_token_count,
    )


def embed_response(found: Embeddings) -> v1.EmbedResponse:
    """Return the message of embeddings."""
    embeddings = [
        v1.Embedding(
            tensors=map(_tensor, embedding.arrays),
            step_count=embedding.step_count,
            unknown_token_count=embedding.unknown_token_count,
            token_ids=embedding.ids.tolist(),
        )
        for embedding in found.embeddings
    ]
    return v1.EmbedResponse(model=found.model, digest=found.digest, embeddings=embeddings)


def _tensor(array: NamedArray) -> v1.Tensor:
    values = array.values
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return v1.Tensor(
        name=array.name,
        data_type=array.spec.data_type,
        shape=values.shape,
        content=np.ascontiguousarray(little).tobytes(),
    )


async def inspect_responses(
    events: AsyncIterator[InspectStarted | InspectedSteps], message_bytes: int
) -> AsyncGenerator[v1.InspectResponse, None]:
    """Yield the messages of the events of Inspect; the start goes with the first steps.

    Args:
        events: the events.
        message_bytes: bytes that one message may have.
    """
    response, limit = v1.InspectResponse(), min(_STREAM_BYTES, message_bytes)
    async for event in events:
        if isinstance(event, InspectStarted):
            response.started.CopyFrom(_inspect_started(event))
            continue
        steps = await offload(event.values.size, lambda event=event: _steps(event), _MANY_VALUES)  # type: ignore[misc]
        for group in grouped(steps, limit):
            response.steps.extend(group)
            yield response
            response = v1.InspectResponse()


def _inspect_started(started: InspectStarted) -> v1.InspectStarted:
    return v1.InspectStarted(
        model=started.model,
        digest=started.digest,
        units=[v1.UnitSelection(state_name=unit.state, indices=unit.indices) for unit in started.units],
        step_count=started.step_count,
        unknown_token_count=started.unknown_token_count,
    )


def _steps(event: InspectedSteps) -> list[v1.InspectedStep]:
    return [
        v1.InspectedStep(token_id=token, text=text, values=row.tolist())
        for token, text, row in zip(event.ids.tolist(), event.texts, event.values, strict=True)
    ]
