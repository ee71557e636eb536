"""The calls of AnalysisService: scores, embeddings and inspections.

async with Client() as client:
    score = await client.score("blue", context="The sky is ")
    print(score.log_likelihood, score.perplexity)
    (embedding,) = await client.embed(["a text"])
    async for step in client.inspect("a text", units={"state.layer0.hidden": [7]}):
        print(step.text, step.values)
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from elman.analysis_results import Embedding, InspectedStep, Score, TokenScore, Unit, embedding_of, score_of
from elman.connection import Connection
from elman.errors import refused_arguments, rpc_errors
from elman.inputs import Input, set_input, set_source
from elman_protos import v1

if TYPE_CHECKING:
    from elman.inputs import Numbers

_Response = TypeVar("_Response")


class ScoreStream:
    """Scores in progress: iterate over it for the scores, in the order of the candidates.

    Attributes:
        model: the model's name; "" before the first score.
        digest: the digest of the model's bundle; "" before the first score.
        context_token_count: the number of tokens of the context, with the begin token.
        cached_token_count: the number of them that were not read, because the state after them was cached.
        source_unknown_count: the number of positions of the source that are unknown to the encoder's vocabulary.
        unknown_token_count: the number of tokens of the context that are unknown to the vocabulary.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, v1.ScoreResponse], address: str) -> None:
        self._call = call
        self._address = address
        self.model = ""
        self.digest = ""
        self.context_token_count = 0
        self.cached_token_count = 0
        self.source_unknown_count = 0
        self.unknown_token_count = 0

    async def __aiter__(self) -> AsyncIterator[Score]:
        tokens: list[TokenScore] = []
        async for response in _responses(self._call, self._address):
            if response.HasField("started"):
                started = response.started
                self.model, self.digest = started.model, started.digest
                self.context_token_count = started.context_token_count
                self.cached_token_count = started.cached_token_count
                self.source_unknown_count = started.source_unknown_count
                self.unknown_token_count = started.unknown_token_count
            for part in response.scores:
                tokens.extend(map(TokenScore, part.tokens.ids, part.tokens.texts, part.tokens.log_probabilities))
                if part.HasField("total"):
                    yield score_of(part.total, tokens)
                    tokens = []


class InspectionStream:
    """An inspection in progress: iterate over it for its steps.

    Attributes:
        model: the model's name; "" before the first step.
        digest: the digest of the model's bundle; "" before the first step.
        units: the units whose values the steps have, in their order.
        step_count: the number of steps.
        unknown_token_count: the number of their tokens that are unknown to the vocabulary.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, v1.InspectResponse], address: str) -> None:
        self._call = call
        self._address = address
        self.model = ""
        self.digest = ""
        self.units: tuple[Unit, ...] = ()
        self.step_count = 0
        self.unknown_token_count = 0

    async def __aiter__(self) -> AsyncIterator[InspectedStep]:
        async for response in _responses(self._call, self._address):
            if response.HasField("started"):
                started = response.started
                self.model, self.digest = started.model, started.digest
                self.units = tuple(Unit(group.state_name, index) for group in started.units for index in group.indices)
                self.step_count = started.step_count
                self.unknown_token_count = started.unknown_token_count
            for step in response.steps:
                yield InspectedStep(step.token_id, step.text, tuple(step.values))


class AnalysisCalls(Connection):
    """The calls of AnalysisService."""

    @property
    def _analysis(self) -> v1.AnalysisServiceAsyncStub:
        return self._channel().analysis

    async def score(
        self,
        text: Input,
        *,
        context: Input = "",
        source: Input | Numbers | None = None,
        model: str = "",
        totals_only: bool = False,
        bypass_prefix_cache: bool = False,
        timeout: float | None = None,
    ) -> Score:
        """Compute the log-likelihood of a text.

        Args:
            text: text or token ids: at least one token, or two if nothing precedes them.
            context: what precedes the text and is not scored, text or token ids.
            source: what the model's encoder reads, if it has one; see `Client.generate`.
            model: the model's name; optional if the server has only one that generates.
            totals_only: leave out the scores of single tokens.
            bypass_prefix_cache: read the whole context, even if the state after its beginning is cached.
            timeout: the time limit in seconds.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        (score,) = [
            score
            async for score in self.score_candidates(
                [text],
                context=context,
                source=source,
                model=model,
                totals_only=totals_only,
                bypass_prefix_cache=bypass_prefix_cache,
                timeout=timeout,
            )
        ]
        return score

    def score_candidates(
        self,
        candidates: Iterable[Input],
        *,
        context: Input = "",
        source: Input | Numbers | None = None,
        model: str = "",
        totals_only: bool = False,
        bypass_prefix_cache: bool = False,
        timeout: float | None = None,
    ) -> ScoreStream:
        """Compute the log-likelihoods of several texts, each separately after the same context, which is read once.

        The call starts now; its errors are raised by iterating.

        Args:
            candidates: at most 16384 texts or lists of token ids; see `score`.
            context: what precedes every candidate and is not scored.
            source: what the model's encoder reads, if it has one; it is read once.
            model: the model's name; optional if the server has only one that generates.
            totals_only: leave out the scores of single tokens.
            bypass_prefix_cache: read the whole context, even if the state after its beginning is cached.
            timeout: the time limit for the whole call in seconds.

        Raises:
            InvalidRequestError: the protocol cannot express an argument.
        """
        with refused_arguments():
            request = v1.ScoreRequest(model=model, totals_only=totals_only, bypass_prefix_cache=bypass_prefix_cache)
            set_input(request.context, context)
            set_source(request, source)
            for candidate in _list_of_inputs(candidates):
                set_input(request.candidates.add(), candidate)
        call = self._analysis.Score(request, timeout=self._seconds(timeout), metadata=self._metadata())
        return ScoreStream(call, self.address)

    async def embed(
        self,
        inputs: Iterable[Input],
        *,
        model: str = "",
        states: Sequence[str] = (),
        output: str = "",
        every_step: bool = False,
        timeout: float | None = None,
    ) -> list[Embedding]:
        """Compute the states or an output of a model for inputs, each separately.

        Args:
            inputs: texts or lists of token ids, of one or more tokens each.
            model: the model's name; optional if the server has only one.
            states: the input names of the states to return; default all states.
            output: the name of an output to return instead of states.
            every_step: return the values after every step instead of the last one only.
            timeout: the time limit in seconds.

        Returns:
            The embeddings in the order of the inputs.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
            if output and states:
                raise ValueError("states and output exclude each other")
            request = v1.EmbedRequest(model=model, every_step=every_step)
            if output:
                request.output = output
            else:
                request.states.names.extend(states)
            for given in _list_of_inputs(inputs):
                set_input(request.inputs.add(), given)
        response = await self._call(self._analysis.Embed, request, timeout)
        return [embedding_of(embedding) for embedding in response.embeddings]

    def inspect(
        self,
        input: Input,
        *,
        model: str = "",
        units: Mapping[str, Sequence[int]] | None = None,
        timeout: float | None = None,
    ) -> InspectionStream:
        """Read the values of single units of the state while a model reads an input.

        The call starts now; its errors are raised by iterating.

        Args:
            input: text or token ids; not empty.
            model: the model's name; optional if the server has only one.
            units: the indices of the units by the input name of their state, in row-major order; an empty list for all
                units of a state. By default all units of all states.
            timeout: the time limit for the whole call in seconds.

        Raises:
            InvalidRequestError: the protocol cannot express an argument.
        """
        with refused_arguments():
            request = v1.InspectRequest(model=model)
            set_input(request.input, input)
            for name, indices in (units or {}).items():
                request.units.add(state_name=name, indices=indices)
        call = self._analysis.Inspect(request, timeout=self._seconds(timeout), metadata=self._metadata())
        return InspectionStream(call, self.address)


async def _responses(call: grpc.aio.UnaryStreamCall[Any, _Response], address: str) -> AsyncIterator[_Response]:
    """The responses of a stream, which is cancelled when iteration ends."""
    try:
        with rpc_errors(address):
            async for response in call:
                yield response
    finally:
        call.cancel()


def _list_of_inputs(inputs: Iterable[Input]) -> Iterable[Input]:
    """Refuse a single text, whose characters would be taken for the inputs.

    Raises:
        ValueError: the argument is a str.
    """
    if isinstance(inputs, str):
        raise ValueError("got one text; a list of texts is needed")
    return inputs
