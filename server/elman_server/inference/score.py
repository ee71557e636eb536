"""The use case Score: how probable candidates are behind a context. The context is read once, and every candidate
continues from its state."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elman_bundle.vocabulary import TokenIds
from elman_server.engine import Arrays, OutputSelection
from elman_server.errors import InvalidFieldError, ModelFailedError
from elman_server.inference.delivery import Mailbox
from elman_server.inference.input_forms import Input
from elman_server.inference.inputs import EncodedInput, read_all, read_tokens
from elman_server.inference.model import ServedModel
from elman_server.inference.offload import offload
from elman_server.inference.prefill import read_all_but_last
from elman_server.inference.readings import run_readings
from elman_server.inference.resources import Resources
from elman_server.inference.sources import read_source
from elman_server.scheduling import Reading, Source

MAX_CANDIDATES = 16_384


@dataclass(frozen=True)
class ScoreRequest:
    """A request to score candidates.

    Attributes:
        model: name of the model; "" for the only one that suits.
        context: what goes before every candidate; None for nothing.
        candidates: the candidates.
        source: what the encoder reads; None for nothing.
        totals_only: whether the log-probabilities of single tokens are left out.
        bypass_prefix_cache: whether the context is read in full.
    """

    model: str = ""
    context: Input | None = None
    candidates: Sequence[Input] = ()
    source: Input | None = None
    totals_only: bool = False
    bypass_prefix_cache: bool = False


@dataclass(frozen=True)
class ScoreStarted:
    """The request has been accepted.

    Attributes:
        model: name of the model.
        digest: digest of its bundle.
        context_token_count: number of tokens before every candidate, the begin token included.
        cached_token_count: how many of them the prefix cache has saved.
        source_unknown_count: how many positions of the source the encoder's vocabulary does not have.
        unknown_token_count: how many tokens of the context the vocabulary does not have.
    """

    model: str
    digest: str
    context_token_count: int
    cached_token_count: int
    source_unknown_count: int
    unknown_token_count: int


@dataclass(frozen=True, slots=True)
class CandidateScore:
    """How probable a candidate is.

    Attributes:
        index: which candidate.
        log_likelihood: sum of the log-probabilities of its tokens, in nats.
        token_count: number of tokens that were scored.
        perplexity: of these tokens.
        unknown_token_count: how many of its tokens the vocabulary does not have.
        ids: int64 [token_count].
        log_probabilities: float32 [token_count].
        texts: one for each token; empty if single tokens were not requested.
    """

    index: int
    log_likelihood: float
    token_count: int
    perplexity: float
    unknown_token_count: int
    ids: TokenIds
    log_probabilities: NDArray[np.float32]
    texts: list[str]


async def score(
    resources: Resources, request: ScoreRequest, caller: str
) -> AsyncGenerator[ScoreStarted | list[CandidateScore], None]:
    """Answer a request: with its start, and with scores in the order of the candidates, as many at a time as there are.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller, whose prefix cache is used.

    Raises:
        DomainError: why it cannot be answered, or not to its end.
    """
    model, limits = resources.models.that_generates(request.model), resources.limits
    source = await read_source(request.source, model, limits)
    context = await read_tokens(request.context, model, limits, begin=model.begin_tokens)
    candidates = await _read_candidates(request, len(context.ids), model, resources)
    bypass = request.bypass_prefix_cache or source is not None
    prefix = resources.prefixes.look_up(model.bundle.digest, caller, context.ids, bypass=bypass)
    yield ScoreStarted(
        model.name,
        model.bundle.digest,
        len(context.ids),
        prefix.position,
        source.unknown_count if source else 0,
        context.unknown_count,
    )
    encoder_source = source.source if source else None
    begin = await read_all_but_last(model, context.ids, prefix, encoder_source)
    scorer = Scorer(model, context.ids, begin.state, encoder_source, texts=not request.totals_only)
    async with aclosing(scorer.scores(candidates, "candidates")) as scores:
        async for found in scores:
            yield found


async def _read_candidates(
    request: ScoreRequest, context_length: int, model: ServedModel, resources: Resources
) -> list[EncodedInput]:
    async def read(given: Input) -> EncodedInput:
        return await read_nonempty(given, model, resources)

    candidates = await read_all(
        request.candidates,
        "candidates",
        read,
        resources.limits,
        least=1,
        most=MAX_CANDIDATES,
        context_length=context_length,
    )
    for index, candidate in enumerate(candidates):
        if len(candidate.ids) == 1 and not context_length:
            rule, remedy = "a first token has no probability", "Give a context, or two tokens or more"
            raise InvalidFieldError(f"candidates[{index}]", "one token without a context", rule, remedy)
    return candidates


async def read_nonempty(given: Input, model: ServedModel, resources: Resources) -> EncodedInput:
    """Return an input of one token or more.

    Raises:
        InvalidFieldError: it is empty or cannot be encoded.
    """
    read = await read_tokens(given, model, resources.limits)
    if not len(read.ids):
        raise InvalidFieldError(
            given.field.rpartition(".")[0] or given.field, "an empty input", "there is nothing to read"
        )
    return read


class Scorer:
    """Scores candidates behind a context.

    Args:
        model: the model.
        context: what goes before each of them, int64 [T].
        state: the state before the context's last token, which every candidate reads for itself: what the model shows
            after it is the candidate's first score. None for the initial state.
        source: what the encoder reads before all of it, if the model has one.
        texts: whether to return the texts of single tokens.
    """

    def __init__(
        self,
        model: ServedModel,
        context: TokenIds,
        state: Arrays | None,
        source: Source | None = None,
        *,
        texts: bool,
    ) -> None:
        self._model = model
        self._context = context
        self._state = state
        self._source = source
        self._texts = texts

    async def scores(
        self, candidates: Sequence[EncodedInput], field: str
    ) -> AsyncGenerator[list[CandidateScore], None]:
        """Yield the scores of candidates in order, as many at a time as there are.

        Args:
            candidates: the candidates.
            field: the field that holds them, for messages.

        Raises:
            ModelFailedError: the model failed on a candidate, or its output is not finite.
            DomainError: why another one has not come to its end.
        """
        readings = (self._reading(candidate.ids) for candidate in candidates)
        done = 0
        async with aclosing(run_readings(self._model, readings)) as ends:
            try:
                async for finished in ends:
                    scores: list[CandidateScore] = []
                    failure: ModelFailedError | None = None
                    for end in finished:
                        if np.isnan(end.log_probabilities).any():
                            failure = ModelFailedError("the model's output is not finite, so it has no score")
                            break
                        scores.append(await self._score(done, candidates[done], end.log_probabilities))
                        done += 1
                    yield scores
                    if failure is not None:
                        raise failure
            except ModelFailedError as error:
                raise ModelFailedError(f"{field}[{done}]: {error}") from error

    def _reading(self, ids: TokenIds) -> tuple[Reading, Mailbox]:
        """Return what finds the log-probabilities of a candidate's tokens, without its first if there is no context."""
        read, mailbox = np.concatenate([self._context[-1:], ids]), Mailbox()
        reading = Reading(
            read[:-1],
            mailbox,
            self._state,
            source=self._source,
            position=max(len(self._context) - 1, 0),
            every_step=False,
            selection=OutputSelection(log_probabilities=True),
            targets=read[1:],
        )
        return reading, mailbox

    async def _score(
        self, index: int, candidate: EncodedInput, log_probabilities: NDArray[np.float32]
    ) -> CandidateScore:
        count = len(log_probabilities)  # of all its tokens, or of all but the first
        likelihood = float(log_probabilities.sum(dtype=np.float64))
        with np.errstate(over="ignore"):  # A perplexity beyond the range of float64 is infinite.
            perplexity = float(np.exp(np.float64(-likelihood / count)))
        texts: list[str] = []
        if self._texts:
            texts = (await offload(count, lambda: self._model.token_texts(candidate.ids)))[-count:]
        return CandidateScore(
            index,
            likelihood,
            count,
            perplexity,
            candidate.unknown_count,
            candidate.ids[-count:],
            log_probabilities,
            texts,
        )
