"""Classify requests of a batch that are trees: parsed together and labelled without a task for each, which for a short
tree would cost more than the model does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from elman_server.errors import DomainError
from elman_server.inference.batch import Cancel, Done
from elman_server.inference.classify import Classification, ClassifyRequest
from elman_server.inference.inputs import count_unknown
from elman_server.inference.labels import prediction_of
from elman_server.inference.model import LabelOutput, ServedModel
from elman_server.inference.readings import end_of
from elman_server.inference.resources import Resources
from elman_server.inference.trees.reading import read_short_trees
from elman_server.scheduling import Event


def start_trees(resources: Resources, requests: Sequence[ClassifyRequest], done: Sequence[Done]) -> list[Cancel]:
    """Start as many of the first requests as are short trees of one model; see `elman_server.inference.batch.Start`.

    Args:
        resources: what the server has.
        requests: the requests.
        done: one for each request; called with what gives its result.

    Returns:
        What cancels each of those that have been started.

    Raises:
        DomainError: one of them cannot be answered; none has been started.
    """
    name = requests[0].model
    if any(request.model != name or request.session is not None for request in requests):
        return []
    model, output = resources.models.that_labels(name)
    if not model.reads_trees:
        return []
    answers = [_TreeAnswer(model, output, request, call) for request, call in zip(requests, done, strict=True)]
    inputs, every_node = [request.input for request in requests], [request.every_node for request in requests]
    trees = read_short_trees(inputs, model, answers, every_node) or []
    started: list[Cancel] = []
    with suppress(DomainError):  # The queue is full: those that remain are answered one by one.
        for tree, answer in zip(trees, answers, strict=False):
            answer.node_count = len(tree.forced)
            answer.unknown_count = count_unknown(tree.forced, model.vocabulary)
            model.scheduler.submit(tree)
            started.append(partial(model.scheduler.abort, tree))
    return started


class _TreeAnswer:
    """Answers a request when its tree has come to its end; implements `Receiver`."""

    def __init__(self, model: ServedModel, output: LabelOutput, request: ClassifyRequest, done: Done) -> None:
        self._model = model
        self._labels = output.labels
        self._every_node = request.every_node
        self._done = done
        self.node_count = self.unknown_count = 0  # set when the tree has been parsed

    def receive(self, event: Event) -> None:
        self._done(lambda: self._result(event))

    def _result(self, event: Event) -> Classification:
        logits = end_of([event]).outputs
        prediction = prediction_of(self._labels, logits, self.node_count, every_step=self._every_node)
        return Classification(
            self._model.name, self._model.bundle.digest, prediction, unknown_token_count=self.unknown_count
        )
