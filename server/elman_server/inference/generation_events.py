"""What a caller of a generation sees: one update after another, the first with its start, the last with its end."""

from __future__ import annotations

from dataclasses import dataclass, field

from elman_server.scheduling import FinishReason


@dataclass(frozen=True, slots=True)
class GenerationStarted:
    """The request has been accepted.

    Attributes:
        model: name of the model.
        digest: digest of its bundle.
        seed: the seed in use.
        prompt_token_count: number of prompt tokens, the begin token included.
        unknown_token_count: how many of them the vocabulary does not have.
        session_position: position of the session before the call; None without a session.
        cached_token_count: how many prompt tokens the prefix cache has saved.
        source_position_count: number of positions of the source.
        source_unknown_count: how many of them the encoder's vocabulary does not have.
    """

    model: str
    digest: str
    seed: int
    prompt_token_count: int
    unknown_token_count: int
    session_position: int | None = None
    cached_token_count: int = 0
    source_position_count: int = 0
    source_unknown_count: int = 0


@dataclass(frozen=True, slots=True)
class LikelyToken:
    """A token that could have been generated, its text, and the natural logarithm of its probability."""

    token_id: int
    text: str
    log_probability: float


@dataclass(frozen=True, slots=True)
class TokenLikelihood:
    """How probable a generated token was.

    Attributes:
        log_probability: natural logarithm of its probability.
        most_likely: the most probable tokens in its place, the most probable first.
    """

    log_probability: float
    most_likely: tuple[LikelyToken, ...]


@dataclass(frozen=True, slots=True)
class GenerationUsage:
    """What a generation has used. Times are seconds since the request arrived.

    Attributes:
        step_count: steps of the model, forced and free.
        waiting_time: until its first step.
        first_token_time: until its first token.
        total_time: until its end.
    """

    step_count: int
    waiting_time: float
    first_token_time: float
    total_time: float


@dataclass(frozen=True, slots=True)
class GenerationFinished:
    """The end of a generation.

    Attributes:
        reason: why it finished.
        token_count: number of generated tokens, the end token not included.
        session_position: position of the session after the call; None without a session.
        stop_sequence: the stop sequence that was found; "" if none was.
        score: of a result of a beam search: the sum of the log-probabilities, divided by the power of the length.
        usage: None for a call that is repeated from the record.
        held_text: in a session, text that is held back because the next call may complete a character or a stop
            sequence.
    """

    reason: FinishReason
    token_count: int
    session_position: int | None = None
    stop_sequence: str = ""
    score: float | None = None
    usage: GenerationUsage | None = None
    held_text: str = ""


@dataclass(slots=True)
class GenerationUpdate:
    """What has happened to a generation since the update before. A door sends it as one message, because a message
    costs as much as the arithmetic of many tokens.

    Attributes:
        index: the continuation or result that it belongs to.
        started: in the first update of the request.
        token_ids: new tokens.
        text: their text, complete characters only, so it may lag behind the tokens.
        likelihoods: one for each token if reports were requested.
        finished: in the last update of the continuation or result.
    """

    index: int = 0
    started: GenerationStarted | None = None
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    likelihoods: list[TokenLikelihood] = field(default_factory=list)
    finished: GenerationFinished | None = None
