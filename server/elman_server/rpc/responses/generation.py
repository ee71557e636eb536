"""GenerateResponse, from the updates of a generation."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration

from elman_protos import v1
from elman_server.inference.generation_events import (
    GenerationFinished,
    GenerationStarted,
    GenerationUpdate,
    GenerationUsage,
    TokenLikelihood,
)
from elman_server.scheduling import FinishReason

_FINISH_REASONS = {
    FinishReason.MAX_TOKENS: v1.FINISH_REASON_MAX_TOKENS,
    FinishReason.END_TOKEN: v1.FINISH_REASON_END_TOKEN,
    FinishReason.STOP_SEQUENCE: v1.FINISH_REASON_STOP_SEQUENCE,
    FinishReason.TIME_LIMIT: v1.FINISH_REASON_TIME_LIMIT,
    FinishReason.CONSTRAINT: v1.FINISH_REASON_CONSTRAINT,
}


def generate_response(update: GenerationUpdate) -> v1.GenerateResponse:
    """Return the message of an update."""
    response = v1.GenerateResponse(sequence_index=update.index)
    if update.started is not None:
        response.started.CopyFrom(_started(update.started))
    if update.token_ids or update.text:
        chunk = response.chunk
        chunk.text = update.text
        chunk.token_ids.extend(update.token_ids)
        if update.likelihoods:
            chunk.reports.extend(map(_report, update.likelihoods))
    if update.finished is not None:
        response.finished.CopyFrom(_finished(update.finished))
    return response


def _started(started: GenerationStarted) -> v1.GenerateStarted:
    return v1.GenerateStarted(
        model=started.model,
        digest=started.digest,
        seed=started.seed,
        prompt_token_count=started.prompt_token_count,
        unknown_token_count=started.unknown_token_count,
        session_position=started.session_position,
        cached_token_count=started.cached_token_count,
        source_position_count=started.source_position_count,
        source_unknown_count=started.source_unknown_count,
    )


def _report(likelihood: TokenLikelihood) -> v1.TokenReport:
    most_likely = [
        v1.LikelyToken(token_id=token.token_id, text=token.text, log_probability=token.log_probability)
        for token in likelihood.most_likely
    ]
    return v1.TokenReport(log_probability=likelihood.log_probability, most_likely=most_likely)


def _finished(finished: GenerationFinished) -> v1.GenerateFinished:
    return v1.GenerateFinished(
        finish_reason=_FINISH_REASONS[finished.reason],
        generated_token_count=finished.token_count,
        session_position=finished.session_position,
        stop_sequence=finished.stop_sequence,
        score=finished.score,
        held_text=finished.held_text,
        usage=None if finished.usage is None else _usage(finished.usage),
    )


def _usage(usage: GenerationUsage) -> v1.GenerationUsage:
    return v1.GenerationUsage(
        step_count=usage.step_count,
        waiting_time=_duration(usage.waiting_time),
        first_token_time=_duration(usage.first_token_time),
        total_time=_duration(usage.total_time),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromMicroseconds(round(1e6 * seconds))
    return duration
