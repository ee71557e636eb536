"""Calls with one complete result: whole continuations, and labels.

How a request reaches the server is up to the subclass: in a call of its own (`Client`), or with others in one call
(`MultiplexedCalls`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Unpack

from elman.decoding import Decoding, EarlyStopping, set_decoding
from elman.errors import ElmanError, refused_arguments
from elman.generation_results import Continuation
from elman.inputs import Input, set_input, set_source, set_steps
from elman.label_results import Prediction, prediction_of
from elman.session_retries import RetryBudget, position_of, session_call
from elman.tree_input import TreeNode, set_tree
from elman_protos import v1

if TYPE_CHECKING:
    from elman.inputs import Numbers


class UnaryCalls(ABC):
    """The calls with one complete result."""

    @abstractmethod
    async def _generate_all(self, request: v1.GenerateRequest, timeout: float | None) -> list[Continuation]:
        """Send a request and return all of its continuations."""

    @abstractmethod
    async def _classify(self, request: v1.ClassifyRequest, timeout: float | None) -> v1.ClassifyResponse:
        """Send a request and return the response."""

    @abstractmethod
    def _seconds(self, timeout: float | None) -> float | None:
        """The time limit of a call, in seconds."""

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
        """Sample several independent continuations of a prompt, which is read once.

        Args:
            prompt: text or token ids.
            count: the number of continuations. Number i, from 0, is what seed + i gives alone.
            source: what the model's encoder reads, if it has one; it is read once.
            model: the model's name; optional if the server has only one that generates.
            log_probabilities: report the probability of each token, and this number of most probable tokens at its
                position; by default no report.
            timeout: the time limit for all of them together, in seconds.
            **decoding: how tokens are chosen and when the continuations end; see `Decoding`.

        Returns:
            The continuations in the order of their numbers.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
            request = generate_request(prompt, source, model, decoding, log_probabilities)
            request.sampling.sample_count = count
        return await self._generate_all(request, timeout)

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
        """Find the best continuations of a prompt by beam search.

        Args:
            prompt: text or token ids.
            width: the number of beams.
            count: the number of continuations to return, at most `width`.
            length_penalty: the exponent of the length that divides the sum of the log-probabilities; larger values
                favour longer continuations.
            early_stopping: when to end before max_tokens.
            source: what the model's encoder reads, if it has one; it is read once.
            model: the model's name; optional if the server has only one that generates.
            timeout: the time limit in seconds.
            **decoding: see `Decoding`; options of sampling are refused.

        Returns:
            The continuations, the best one first.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
            request = generate_request(prompt, source, model, decoding)
            if request.HasField("sampling"):
                raise ValueError("a beam search does not sample: temperature, top_k, top_p and min_p exclude it")
            request.beam.width, request.beam.result_count = width, count
            request.beam.length_penalty = length_penalty
            request.beam.early_stopping = early_stopping.value
        return await self._generate_all(request, timeout)

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
        """Label an input or a tree.

        Args:
            input: text or token ids; for a model that reads numbers, those of every step as a numpy array
                [steps, *shape] or a list of rows. It must not be empty.
            tree: for a model of trees, instead of an input: an s-expression such as "(2 (2 It) (2 works))", in which
                the label after each opening bracket is ignored, or the root of a tree.
            every_node: label every node of the tree, in the order of the opening brackets, as the prediction's `steps`;
                by default only the root.
            model: the model's name; optional if the server has only one with labels.
            bypass_prefix_cache: read the whole input, even if the state after its beginning is cached.
            session: the id of the session that the input continues.
            position: the expected position of the session; see `Client.generate`.
            request_id: identifies the call within its session; see `Client.generate`.
            patience: the seconds for which a broken call on a session is retried; see `Client.generate`.
            timeout: the time limit in seconds, with retries.

        Raises:
            ElmanError: the call failed; see `elman.errors`.
        """
        with refused_arguments():
            call = session_call(session, position, request_id, patience)
            request = v1.ClassifyRequest(model=model, session=call, bypass_prefix_cache=bypass_prefix_cache)
            request.every_node = every_node
            if (input is None) == (tree is None):
                raise ValueError("classify takes either an input or a tree")
            if tree is not None:
                set_tree(request.tree, tree)
            elif input is not None:
                set_steps(request, input)
        budget = RetryBudget(patience, self._seconds(timeout))
        while True:
            try:
                response = await self._classify(request, budget.timeout)
            except ElmanError as error:
                await asyncio.sleep(budget.pause_after(error))
            else:
                return prediction_of(response.prediction, position_of(response), response.unknown_token_count)


def generate_request(
    prompt: Input,
    source: Input | Numbers | None,
    model: str,
    decoding: Decoding,
    log_probabilities: int | None = None,
) -> v1.GenerateRequest:
    """The request that every call for a continuation starts from.

    Raises:
        ValueError, TypeError, OverflowError: the protocol cannot express an argument.
    """
    request = v1.GenerateRequest(model=model)
    set_input(request, prompt)
    set_source(request, source)
    set_decoding(request, decoding)
    if log_probabilities is not None:
        request.log_probabilities.most_likely_count = log_probabilities
    return request
