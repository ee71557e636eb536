"""The client's side of scores, embeddings and inspections.

async with Client() as client:
    score = await client.score("blue", context="The sky is ")
    print(score.log_likelihood, score.perplexity)
    (embedding,) = await client.embed(["a text"])
    async for step in client.inspect("a text", units={"state.layer0.hidden": [7]}):
        print(step.text, step.values)
"""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from elman.connection import Connection
from elman.errors import expressible, rpc_errors
from elman.inputs import Input, set_input, set_source
from elman_protos import v1
from elman_protos.element_types import BY_NAME, element_type

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from elman.inputs import Numbers

_Response = TypeVar("_Response")


@dataclass(frozen=True)
class TokenScore:
    """How probable a token is, behind all that goes before it.

    Attributes:
        token_id: its id.
        text: whole characters only: that of a character stands with its last token.
        log_probability: the natural logarithm of its probability; -inf where the model excludes it.
    """

    token_id: int
    text: str
    log_probability: float


@dataclass(frozen=True)
class Likelihood:
    """How probable a model holds tokens.

    Attributes:
        log_likelihood: the sum of the log-probabilities of those that were scored, in nats.
        token_count: how many were scored.
        unknown_token_count: how many tokens stand for what the vocabulary does not have.
    """

    log_likelihood: float
    token_count: int
    unknown_token_count: int

    @property
    def nats_per_token(self) -> float:
        """The loss that training reports, in nats."""
        return -self.log_likelihood / self.token_count

    @property
    def bits_per_token(self) -> float:
        """The same in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / token_count); infinite where no number is large enough."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Score(Likelihood):
    """How probable a text is. Scored are all of its tokens, but the first where nothing goes before it, neither a
    context nor the model's begin token.

    Attributes:
        tokens: those scored; empty where only totals were asked for.
    """

    tokens: tuple[TokenScore, ...]


class ScoreStream:
    """Scores under way: iterate over it for them, in the order of the candidates.

    Attributes:
        model: the name of the model that answers; "" before the first score.
        digest: of its bundle.
        context_token_count: the number of the context's tokens, the begin token included.
        cached_token_count: how many of them had not to be read, because the state behind them was known.
        source_unknown_count: how many positions of the source stand for what the encoder's vocabulary does not have.
    """

    def __init__(self, call: grpc.aio.UnaryStreamCall[Any, v1.ScoreResponse], address: str) -> None:
        self._call = call
        self._address = address
        self.model = ""
        self.digest = ""
        self.context_token_count = 0
        self.cached_token_count = 0
        self.source_unknown_count = 0

    async def __aiter__(self) -> AsyncIterator[Score]:
        tokens: list[TokenScore] = []
        async for response in _responses(self._call, self._address):
            if response.HasField("started"):
                started = response.started
                self.model, self.digest = started.model, started.digest
                self.context_token_count = started.context_token_count
                self.cached_token_count = started.cached_token_count
                self.source_unknown_count = started.source_unknown_count
            for part in response.scores:
                tokens.extend(map(TokenScore, part.tokens.ids, part.tokens.texts, part.tokens.log_probabilities))
                if part.HasField("total"):
                    yield _score(part.total, tokens)
                    tokens = []


@dataclass(frozen=True)
class Tensor:
    """An array of numbers.

    Attributes:
        name: of the state or output.
        data_type: "float32", "float16", "int64" or "int32".
        shape: the sizes of its axes; where every step was asked for, the number of steps is the first.
        content: the numbers, the last axis first, little-endian.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]
    content: bytes

    def values(self) -> tuple[float, ...]:
        """The numbers, the last axis first."""
        code = BY_NAME[self.data_type].struct_code
        return struct.unpack(f"<{math.prod(self.shape)}{code}", self.content)

    def to_numpy(self) -> NDArray[Any]:
        """The array, for whoever has numpy."""
        import numpy as np

        stored: np.dtype[Any] = np.dtype(self.data_type).newbyteorder("<")
        return np.frombuffer(self.content, stored).astype(self.data_type).reshape(self.shape)


@dataclass(frozen=True)
class Embedding:
    """What a model makes of an input.

    Attributes:
        tensors: the states by their input names, or the output by its name.
        step_count: the number of tokens read, the begin token included.
        unknown_token_count: how many of them stand for what the vocabulary does not have.
        token_ids: where every step was asked for, the tokens' ids.
    """

    tensors: dict[str, Tensor]
    step_count: int
    unknown_token_count: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """A unit of a state.

    Attributes:
        state: the state's input name.
        index: its place in the state, counted along the last axis first.
    """

    state: str
    index: int


@dataclass(frozen=True)
class InspectedStep:
    """What units did in one step.

    Attributes:
        token_id: of the token that was read.
        text: whole characters only: that of a character stands with its last token.
        values: of the units after it, in the order of `InspectionStream.units`.
    """

    token_id: int
    text: str
    values: tuple[float, ...]


class InspectionStream:
    """An inspection under way: iterate over it for its steps.

    Attributes:
        model: the name of the model that answers; "" before the first step.
        digest: of its bundle.
        units: whose values the steps have, in their order.
        step_count: how many steps there will be.
        unknown_token_count: how many of their tokens stand for what the vocabulary does not have.
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
                self.units = tuple(Unit(some.state_name, index) for some in started.units for index in some.indices)
                self.step_count = started.step_count
                self.unknown_token_count = started.unknown_token_count
            for step in response.steps:
                yield InspectedStep(step.token_id, step.text, tuple(step.values))


class AnalysisCalls(Connection):
    """The calls of AnalysisService."""

    @cached_property
    def _analysis(self) -> v1.AnalysisServiceAsyncStub:
        return v1.AnalysisServiceStub(self._channel)

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
        """How probable a model holds a text.

        Args:
            text: text, or token ids: one token or more, two or more where nothing goes before them.
            context: what goes before it and is not scored, text or token ids.
            source: what the model's encoder reads, where it has one; see `Client.generate`.
            model: its name; may be empty where the server holds one that generates.
            totals_only: leave out single tokens.
            bypass_prefix_cache: read the whole context, though the state behind its beginning may be known.
            timeout: seconds the call may take.
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
        """How probable a model holds each of some texts, each by itself behind the same context, which is read once.
        The call starts now; errors of the server are raised by iterating.

        Args:
            candidates: texts or token ids, at most 16384; see `score`.
            context: what goes before every candidate and is not scored.
            source: what the model's encoder reads, where it has one; it is read once.
            model: its name; may be empty where the server holds one that generates.
            totals_only: leave out single tokens.
            bypass_prefix_cache: read the whole context, though the state behind its beginning may be known.
            timeout: seconds the whole call may take.
        """
        with expressible():
            request = v1.ScoreRequest(model=model, totals_only=totals_only, bypass_prefix_cache=bypass_prefix_cache)
            set_input(request.context, context)
            set_source(request, source)
            for candidate in _several(candidates):
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
        """What a model makes of inputs, each by itself, in their order.

        Args:
            inputs: texts or token ids, of one token or more each.
            model: its name; may be empty where the server holds exactly one.
            states: input names of the states that are told; default all of them.
            output: the name of an output that is told instead.
            every_step: tell it after every step instead of the last one only.
            timeout: seconds the call may take.
        """
        with expressible():
            if output and states:
                raise ValueError("states and an output exclude each other")
            request = v1.EmbedRequest(model=model, every_step=every_step)
            if output:
                request.output = output
            else:
                request.states.names.extend(states)
            for given in _several(inputs):
                set_input(request.inputs.add(), given)
        response = await self._call(self._analysis.Embed, request, timeout)
        return [_embedding(embedding) for embedding in response.embeddings]

    def inspect(
        self,
        input: Input,
        *,
        model: str = "",
        units: Mapping[str, Sequence[int]] | None = None,
        timeout: float | None = None,
    ) -> InspectionStream:
        """What units of the state do while a model reads an input. The call starts now; errors of the server are
        raised by iterating.

        Args:
            input: text, or token ids; not empty.
            model: its name; may be empty where the server holds exactly one.
            units: by a state's input name, which of its units, counted along the last axis first; none: all of them.
                Default: all units of all states.
            timeout: seconds the whole call may take.
        """
        with expressible():
            request = v1.InspectRequest(model=model)
            set_input(request.input, input)
            for name, indices in (units or {}).items():
                request.units.add(state_name=name, indices=indices)
        call = self._analysis.Inspect(request, timeout=self._seconds(timeout), metadata=self._metadata())
        return InspectionStream(call, self.address)


async def _responses(call: grpc.aio.UnaryStreamCall[Any, _Response], address: str) -> AsyncIterator[_Response]:
    """The responses of a stream, which ends with whoever reads it."""
    try:
        with rpc_errors(address):
            async for response in call:
                yield response
    finally:
        call.cancel()


def _several(inputs: Iterable[Input]) -> Iterable[Input]:
    """Refuse one text where several are meant: its characters would be taken for them.

    Raises:
        ValueError: it is one.
    """
    if isinstance(inputs, str):
        raise ValueError("one text is given, but a list of texts is needed")
    return inputs


def _score(total: v1.TotalScore, tokens: list[TokenScore]) -> Score:
    return Score(
        log_likelihood=total.log_likelihood,
        token_count=total.token_count,
        unknown_token_count=total.unknown_token_count,
        tokens=tuple(tokens),
    )


def _embedding(embedding: v1.Embedding) -> Embedding:
    return Embedding(
        tensors={
            tensor.name: Tensor(tensor.name, element_type(tensor.data_type).name, tuple(tensor.shape), tensor.content)
            for tensor in embedding.tensors
        },
        step_count=embedding.step_count,
        unknown_token_count=embedding.unknown_token_count,
        token_ids=tuple(embedding.token_ids),
    )
