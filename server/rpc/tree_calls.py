"""Classify calls with trees: each by itself, and many in one call without a task for each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from elman import v1
from server.rpc.labelling import predict, prediction
from server.rpc.many import LetGo, Outcome
from server.rpc.models import Labelling, ServedModel
from server.rpc.reading import end_of, run_reading
from server.rpc.trees import requested_tree, short_tree
from server.scheduling import Event


async def classify_tree(request: v1.ClassifyRequest, model: ServedModel, labelling: Labelling) -> v1.ClassifyResponse:
    """Label a tree.

    Raises:
        RequestError: it cannot be labelled.
        SchedulingError: what keeps it from its end.
    """
    tree = await requested_tree(request, model)
    outputs = (await run_reading(model, tree)).outputs
    labelling = Labelling(labelling.labels, request.every_node)
    return _response(model, await predict(labelling, outputs, len(tree.forced)))


def begin_tree(
    request: v1.ClassifyRequest, model: ServedModel, labelling: Labelling, end: Callable[[Outcome], None]
) -> LetGo | None:
    """Have a tree labelled; see `server.rpc.many.Begin`. None: it is too long for that.

    Raises:
        RequestError: it cannot be labelled.
        SchedulingError: nor can any now.
    """
    return _Answering(request, model, Labelling(labelling.labels, request.every_node), end).begin()


class _Answering:
    """Answers a request when its tree has come to its end; implements `Receiver`."""

    def __init__(
        self, request: v1.ClassifyRequest, model: ServedModel, labelling: Labelling, end: Callable[[Outcome], None]
    ) -> None:
        self._request = request
        self._model = model
        self._labelling = labelling
        self._end = end
        self._node_count = 0

    def begin(self) -> LetGo | None:
        """Submit the tree."""
        tree = short_tree(self._request, self._model, self)
        if tree is None:
            return None
        self._node_count = len(tree.forced)
        self._model.scheduler.submit(tree)
        return partial(self._model.scheduler.abort, tree)

    def receive(self, event: Event) -> None:
        self._end(lambda: self._response(event))

    def _response(self, event: Event) -> v1.ClassifyResponse:
        found = prediction(self._labelling, end_of([event]).outputs, self._node_count)
        return _response(self._model, found)


def _response(model: ServedModel, found: v1.Prediction) -> v1.ClassifyResponse:
    return v1.ClassifyResponse(model=model.name, digest=model.bundle.digest, prediction=found)
