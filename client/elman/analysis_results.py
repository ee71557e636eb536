"""The results of scores, embeddings and inspections."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elman_protos import v1
from elman_protos.element_types import BY_NAME, element_type

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenScore:
    """The probability of a token after everything before it.

    Attributes:
        token_id: the token's id.
        text: complete characters only; a character of several tokens is the text of the last of them.
        log_probability: the natural logarithm of its probability; -inf if the model excludes it.
    """

    token_id: int
    text: str
    log_probability: float


@dataclass(frozen=True)
class Likelihood:
    """The probability of tokens according to a model.

    Attributes:
        log_likelihood: the sum of the log-probabilities of the scored tokens, in nats.
        token_count: the number of scored tokens.
        unknown_token_count: the number of tokens that are unknown to the vocabulary.
    """

    log_likelihood: float
    token_count: int
    unknown_token_count: int

    @property
    def nats_per_token(self) -> float:
        """The mean negative log-likelihood in nats, which training reports as the loss."""
        return -self.log_likelihood / self.token_count

    @property
    def bits_per_token(self) -> float:
        """The mean negative log-likelihood in bits."""
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """exp(-log_likelihood / token_count); infinite if a float cannot hold it."""
        try:
            return math.exp(self.nats_per_token)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Score(Likelihood):
    """The probability of a text.

    All of its tokens are scored, except the first one if neither a context nor the model's begin token precedes it.

    Attributes:
        tokens: the scores of the tokens; empty if only totals were requested.
    """

    tokens: tuple[TokenScore, ...]


@dataclass(frozen=True)
class Tensor:
    """An array of numbers.

    Attributes:
        name: the name of the state or output.
        data_type: "float32", "float16", "int64" or "int32".
        shape: the sizes of its axes; the first one is the number of steps if every step was requested.
        content: the numbers in row-major order, little-endian.
    """

    name: str
    data_type: str
    shape: tuple[int, ...]
    content: bytes

    def values(self) -> tuple[float, ...]:
        """The numbers in row-major order."""
        code = BY_NAME[self.data_type].struct_code
        return struct.unpack(f"<{math.prod(self.shape)}{code}", self.content)

    def to_numpy(self) -> NDArray[Any]:
        """The array; needs numpy."""
        import numpy as np

        stored: np.dtype[Any] = np.dtype(self.data_type).newbyteorder("<")
        return np.frombuffer(self.content, stored).astype(self.data_type).reshape(self.shape)


@dataclass(frozen=True)
class Embedding:
    """The states or an output of a model after an input.

    Attributes:
        tensors: the states by their input names, or the output by its name.
        step_count: the number of tokens read, with the begin token.
        unknown_token_count: the number of tokens that are unknown to the vocabulary.
        token_ids: the ids of the tokens, if every step was requested.
    """

    tensors: dict[str, Tensor]
    step_count: int
    unknown_token_count: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Unit:
    """A unit of a state.

    Attributes:
        state: the input name of the state.
        index: the index of the unit in the state, in row-major order.
    """

    state: str
    index: int


@dataclass(frozen=True)
class InspectedStep:
    """The values of units after one step.

    Attributes:
        token_id: the token that was read.
        text: complete characters only; a character of several tokens is the text of the last of them.
        values: the values of the units, in the order of `InspectionStream.units`.
    """

    token_id: int
    text: str
    values: tuple[float, ...]


def score_of(total: v1.TotalScore, tokens: list[TokenScore]) -> Score:
    return Score(
        log_likelihood=total.log_likelihood,
        token_count=total.token_count,
        unknown_token_count=total.unknown_token_count,
        tokens=tuple(tokens),
    )


def embedding_of(embedding: v1.Embedding) -> Embedding:
    return Embedding(
        tensors={
            tensor.name: Tensor(tensor.name, element_type(tensor.data_type).name, tuple(tensor.shape), tensor.content)
            for tensor in embedding.tensors
        },
        step_count=embedding.step_count,
        unknown_token_count=embedding.unknown_token_count,
        token_ids=tuple(embedding.token_ids),
    )
