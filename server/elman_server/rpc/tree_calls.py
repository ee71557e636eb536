"""Classify calls with trees: each by itself, and many in one call without a task for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

from elman_protos import v1
from elman_server.errors import DomainError
from elman_server.rpc.labelling import predict, prediction
from elman_server.rpc.many import LetGo, Outcome
from elman_server.rpc.models import Labelling, ServedModel
from elman_server.rpc.reading import end_of, run_reading
from elman_server.rpc.trees import requested_tree, short_trees
from elman_server.scheduling import Event


async def classify_tree(request: v1.ClassifyRequest, model: ServedModel, labelling: Labelling) -> v1.ClassifyResponse:
    """Label a tree.

    Raises:
        RequestError: it cannot be labelled.
        DomainError: what keeps it from its end.
    """
    tree = await requested_tree(request, model)
    outputs = (await run_reading(model, tree)).outputs
    labelling = Labelling(labelling.labels, request.every_node)
    return _response(model, await predict(labelling, outputs, len(tree.forced)))


def begin_trees(
    requests: Sequence[v1.ClassifyRequest],
    model: ServedModel,
    labelling: Labelling,
    ends: Sequence[Callable[[Outcome], None]],
) -> list[LetGo]:
    """Have trees labelled; see `elman_server.rpc.many.Begin`.

    Raises:
        InvalidFieldError: one of them cannot be labelled.
    """
    answering = [
        _Answering(model, Labelling(labelling.labels, request.every_node), end)
        for request, end in zip(requests, ends, strict=True)
    ]
    begun: list[LetGo] = []
    with contextlib.suppress(DomainError):
        for tree, receiver in zip(short_trees(requests, model, answering) or (), answering, strict=False):
            receiver.node_count = len(tree.forced)
            model.scheduler.submit(tree)
            begun.append(partial(model.scheduler.abort, tree))
    return begun


class _Answering:
    """Answers a request when its tree has come to its end; implements `Receiver`."""

    def __init__(self, model: ServedModel, labelling: Labelling, end: Callable[[Outcome], None]) -> None:
        self._model = model
        self._labelling = labelling
        self._end = end
        self.node_count = 0  # told when there is a tree

    def receive(self, event: Event) -> None:
        self._end(lambda: self._response(event))

    def _response(self, event: Event) -> v1.ClassifyResponse:
        found = prediction(self._labelling, end_of([event]).outputs, self.node_count)
        return _response(self._model, found)


def _response(model: ServedModel, found: v1.Prediction) -> v1.ClassifyResponse:
    return v1.ClassifyResponse(model=model.name, digest=model.bundle.digest, prediction=found)
