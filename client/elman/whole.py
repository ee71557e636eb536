"""Calls whose answer is of use when all of it is there: labels, whole continuations. How they get to the server is up
to whoever makes them: each in a call of its own (`Client`), or many in one (`ManyCalls`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from elman.decoding import Continuation, Decoding, EarlyStopping, set_decoding
from elman.errors import ElmanError, expressible
from elman.inputs import Input, set_input, set_source, set_steps
from elman.sessions import Patience, session_call
from elman.trees import TreeNode, set_tree
from elman_protos import v1

if TYPE_CHECKING:
    from elman.inputs import Numbers


@dataclass(frozen=True)
class Label:
    """A label and how probable the model holds it."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The labels of an input.

    Attributes:
        labels: a classifier's, all of them, the most probable first; empty for a tagger. Of a tree its root's.
        steps: a tagger's, one for every step; empty for a classifier. Of a tree whose nodes were all asked for: one for
            every node.
        step_count: the number of steps read; in a stream, all pieces together. Of a tree: its nodes.
        session_position: the session's after this call, or after this piece; None without a session.
    """

    labels: tuple[Label, ...]
    steps: tuple[Label, ...]
    step_count: int
    session_position: int | None = None


class WholeCalls(ABC):
    """The calls, but for the way to the server."""

    @abstractmethod
    async def _whole(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        """All continuations that a request brings."""

    @abstractmethod
    async def _labelled(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        """The answer to a request."""

    @abstractmethod
    def _seconds(self, timeout: float | None) -> float | None:
        """Seconds that a call may take which says `timeout`."""

    async def sample(
        self,
        prompt: Input = "",
        *,
        count: int,
        source: Input | Numbers | None = None,
        model: str = "",
        log_probabilities: int | None = None,
        timeout: float | None = None,
        **decoding: Unpack[Decoding],
    ) -> list[Continuation]:
        """Several continuations of a prompt, drawn independently; the prompt is read once.

        Args:
            prompt: text, or token ids.
            count: how many; the number i, from 0, is what the seed plus i brings alone.
            source: what the model's encoder reads, where it has one; it is read once.
            model: its name; may be empty where the server holds one that generates.
            log_probabilities: see `generate`.
            timeout: seconds all of them together may take.
            decoding: how tokens are chosen and when they end; see `Decoding`.
        """
        with expressible():
            request = generate_request(prompt, source, model, decoding, log_probabilities)
            request.sampling.sample_count = count
        return await self._whole(request, timeout)

    async def search(
        self,
        prompt: Input = "",
        *,
        width: int,
        count: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = EarlyStopping.LIKELY,
        source: Input | Numbers | None = None,
        model: str = "",
        timeout: float | None = None,
        **decoding: Unpack[Decoding],
    ) -> list[Continuation]:
        """The best continuations of a prompt that a beam search finds, the best first.

        Args:
            prompt: text, or token ids.
            width: how many beginnings are kept side by side.
            count: how many continuations are wanted, at most width.
            length_penalty: the exponent of the length that divides the sum of the log-probabilities; above 0 longer
                ones are favoured.
            early_stopping: when to end before max_tokens.
            source: what the model's encoder reads, where it has one; it is read once.
            model: its name; may be empty where the server holds one that generates.
            timeout: seconds it may take.
            decoding: see `Decoding`; nothing is drawn, so what says how to draw does not go with it.
        """
        with expressible():
            request = generate_request(prompt, source, model, decoding)
            if request.HasField("sampling"):
                raise ValueError("a beam search draws nothing: temperature, top_k, top_p and min_p do not go with it")
            request.beam.width, request.beam.result_count = width, count
            request.beam.length_penalty = length_penalty
            request.beam.early_stopping = early_stopping.value
        return await self._whole(request, timeout)

    async def classify(
        self,
        input: Input | Numbers | None = None,
        *,
        tree: str | TreeNode | None = None,
        every_node: bool = False,
        model: str = "",
        bypass_prefix_cache: bool = False,
        session: str = "",
        position: int | None = None,
        request_id: str = "",
        patience: float = 0.0,
        timeout: float | None = None,
    ) -> Prediction:
        """Label a whole input, or a tree.

        Args:
            input: text, or token ids; for a model that reads numbers those of every step, an array of numpy,
                [steps, *shape], or a list of rows; not empty.
            tree: in the place of an input, for a model of trees: an s-expression such as "(2 (2 It) (2 works))", where
                every bracket begins with a label that is not looked at, or its root.
            every_node: label every node of the tree, in the order of the opening brackets, a node before its children;
                they are the prediction's `steps`. Default: its root only.
            model: its name; may be empty where the server holds one with labels.
            bypass_prefix_cache: read the whole input, though the state behind its beginning may be known.
            session: the id of the session that the input continues.
            position: where the session is expected to be; see `generate`.
            request_id: names the call in its session; see `generate`.
            patience: in a session, seconds for which a call that is broken off is repeated; see `generate`.
            timeout: seconds the call may take, repetitions included.
        """
        with expressible():
            call = session_call(session, position, request_id, patience)
            request = v1.ClassifyRequest(model=model, session=call, bypass_prefix_cache=bypass_prefix_cache)
            request.every_node = every_node
            if (input is None) == (tree is None):
                raise ValueError("classify takes an input or a tree, one of the two")
            if tree is not None:
                set_tree(request.tree, tree)
            elif input is not None:
                set_steps(request, input)
        trying = Patience(patience, self._seconds(timeout))
        while True:
            try:
                response = await self._labelled(request, trying.timeout)
            except ElmanError as error:
                await asyncio.sleep(trying.pause(error))
            else:
                return prediction_of(response.prediction, position_of(response))


def generate_request(
    prompt: Input,
    source: Input | Numbers | None,
    model: str,
    decoding: Decoding,
    log_probabilities: int | None = None,
) -> v1.GenerateRequest:
    """What every call has that continues a prompt.

    Raises:
        ValueError, TypeError, OverflowError: it cannot be said.
    """
    request = v1.GenerateRequest(model=model)
    set_input(request, prompt)
    set_source(request, source)
    set_decoding(request, decoding)
    if log_probabilities is not None:
        request.log_probabilities.most_likely_count = log_probabilities
    return request


def prediction_of(prediction: v1.Prediction, session_position: int | None) -> Prediction:
    return Prediction(
        labels=tuple(Label(label.label, label.probability) for label in prediction.labels),
        steps=tuple(Label(label.label, label.probability) for label in prediction.steps),
        step_count=prediction.step_count,
        session_position=session_position,
    )


def position_of(message: v1.GenerateStarted | v1.GenerateFinished | v1.ClassifyResponse | v1.PieceResult) -> int | None:
    return message.session_position if message.HasField("session_position") else None
