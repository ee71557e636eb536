"""ChooseRequest."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.choose import ChooseRequest
from elman_server.rpc.requests.fields import RequestFields
from elman_server.rpc.requests.inputs import parse_input, parse_inputs, parse_source

RequestFields(
    v1.ChooseRequest,
    content={"model", "source", "text", "tokens", "choices", "open_ended"},
    delivery={"bypass_prefix_cache"},
)


def parse_choose(request: v1.ChooseRequest) -> ChooseRequest:
    """Return the request to choose among continuations."""
    return ChooseRequest(
        request.model,
        parse_input(request, request.WhichOneof("prompt")),
        parse_inputs(request.choices, "choices"),
        parse_source(request),
        request.open_ended,
        request.bypass_prefix_cache,
    )
