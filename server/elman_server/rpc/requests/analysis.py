"""The requests of AnalysisService."""

from __future__ import annotations

from elman_protos import v1
from elman_server.inference.embed import EmbedRequest
from elman_server.inference.inspect import InspectRequest, UnitSelection
from elman_server.inference.score import ScoreRequest
from elman_server.rpc.requests.fields import RequestFields
from elman_server.rpc.requests.inputs import parse_input, parse_inputs, parse_source

RequestFields(
    v1.ScoreRequest,
    content={"model", "context", "candidates", "totals_only", "source"},
    delivery={"bypass_prefix_cache"},
)
RequestFields(v1.EmbedRequest, content={"model", "inputs", "states", "output", "every_step"})
RequestFields(v1.InspectRequest, content={"model", "input", "units"})


def parse_score(request: v1.ScoreRequest) -> ScoreRequest:
    """Return the request to score candidates."""
    return ScoreRequest(
        request.model,
        parse_input(request.context, request.context.WhichOneof("input"), "context."),
        parse_inputs(request.candidates, "candidates"),
        parse_source(request),
        request.totals_only,
        request.bypass_prefix_cache,
    )


def parse_embed(request: v1.EmbedRequest) -> EmbedRequest:
    """Return the request to embed inputs."""
    return EmbedRequest(
        request.model,
        parse_inputs(request.inputs, "inputs"),
        request.states.names,
        request.output if request.WhichOneof("subject") == "output" else None,
        request.every_step,
    )


def parse_inspect(request: v1.InspectRequest) -> InspectRequest:
    """Return the request to look at units."""
    return InspectRequest(
        request.model,
        parse_input(request.input, request.input.WhichOneof("input"), "input."),
        [UnitSelection(selection.state_name, selection.indices) for selection in request.units],
    )
