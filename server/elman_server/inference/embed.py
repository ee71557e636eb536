"""The use case Embed: states or an output of a model after it has read each of some inputs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from elman_bundle.spec import OutputSpec, StateSpec
from elman_bundle.vocabulary import TokenIds
from elman_server.engine import DEFAULT_OUTPUTS, OutputSelection
from elman_server.errors import InvalidFieldError, ModelFailedError, ResponseTooLargeError, listed, shortened
from elman_server.inference.delivery import Mailbox
from elman_server.inference.input_forms import Input
from elman_server.inference.inputs import EncodedInput, read_all, with_begin
from elman_server.inference.model import ServedModel
from elman_server.inference.readings import run_readings
from elman_server.inference.resources import Resources
from elman_server.inference.score import read_nonempty
from elman_server.inference.states import check_state, states_of, value_bytes
from elman_server.scheduling import Reading, ReadingFinished

MAX_INPUTS = 16_384
_ARRAY_BYTES = 64  # approximate overhead of an array in a response, without its name
_ID_BYTES = 5  # what a token's id takes at most


@dataclass(frozen=True)
class EmbedRequest:
    """A request to embed inputs.

    Attributes:
        model: name of the model; "" for the only one that suits.
        inputs: the inputs.
        states: names of the requested states; none for all. Ignored if an output is requested.
        output: name of the requested output; None for states.
        every_step: whether to return them after every step, or after the last one.
    """

    model: str = ""
    inputs: Sequence[Input] = ()
    states: Sequence[str] = ()
    output: str | None = None
    every_step: bool = False


@dataclass(frozen=True)
class NamedArray:
    """A state or an output.

    Attributes:
        spec: its entry in the manifest.
        name: its name.
        values: [*shape], or [T, *shape] if every step was requested.
    """

    spec: StateSpec | OutputSpec
    name: str
    values: NDArray[Any]


@dataclass(frozen=True)
class Embedding:
    """What an input has led to.

    Attributes:
        arrays: the states or the output.
        step_count: number of tokens, the begin token included.
        unknown_token_count: how many of them the vocabulary does not have.
        ids: int64 [step_count] if every step was requested, else empty.
    """

    arrays: list[NamedArray]
    step_count: int
    unknown_token_count: int
    ids: TokenIds


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of the inputs of a request, in order: name of the model, digest of its bundle, and they."""

    model: str
    digest: str
    embeddings: list[Embedding]


async def embed(resources: Resources, request: EmbedRequest) -> Embeddings:
    """Answer a request.

    Args:
        resources: what the server has.
        request: the request.

    Raises:
        DomainError: why it cannot be answered.
    """
    model = resources.models.that_reads(request.model)
    selected = _select(request, model)

    async def read(given: Input) -> EncodedInput:
        return await read_nonempty(given, model, resources)

    inputs = await read_all(request.inputs, "inputs", read, resources.limits, least=1, most=MAX_INPUTS)
    inputs = [with_begin(given, model.begin_tokens) for given in inputs]
    _check_response_size(selected, inputs, resources, every_step=request.every_step)
    readings = (_reading(given.ids, selected, every_step=request.every_step) for given in inputs)
    found: list[Embedding] = []
    try:
        async with aclosing(run_readings(model, readings)) as ends:
            async for finished in ends:
                for end in finished:
                    given = inputs[len(found)]
                    found.append(
                        Embedding(
                            _arrays(selected, end, every_step=request.every_step),
                            len(given.ids),
                            given.unknown_count,
                            given.ids if request.every_step else given.ids[:0],
                        )
                    )
    except ModelFailedError as error:
        raise ModelFailedError(f"inputs[{len(found)}]: {error}") from error
    return Embeddings(model.name, model.bundle.digest, found)


_Selection = tuple[StateSpec, ...] | OutputSpec


def _select(request: EmbedRequest, model: ServedModel) -> _Selection:
    """Return the specs of what a request selects.

    Raises:
        InvalidFieldError: the model has no such state or output.
    """
    if request.output is not None:
        outputs = {output.name: output for output in model.bundle.spec.step.outputs}
        if request.output not in outputs:
            rule = f"the outputs of {model.name!r} are {listed(outputs)}"
            raise InvalidFieldError("output", repr(shortened(request.output)), rule)
        return outputs[request.output]
    states = states_of(model)
    names = list(request.states) or list(states)
    if not names:
        raise InvalidFieldError("states", "none", f"{model.name!r} carries no state", "Choose an output")
    for index, name in enumerate(names):
        check_state(name, f"states.names[{index}]", states, model)
        if name in names[:index]:
            raise InvalidFieldError(f"states.names[{index}]", repr(name), "a state may be named once")
    return tuple(states[name] for name in names)


def _reading(ids: TokenIds, selected: _Selection, *, every_step: bool) -> tuple[Reading, Mailbox]:
    mailbox = Mailbox()
    if isinstance(selected, OutputSpec):
        selection = DEFAULT_OUTPUTS if selected.HasField("label_logits") else OutputSelection(outputs=True)
        return Reading(ids, mailbox, selection=selection, every_step=every_step, output=selected.name), mailbox
    selection = OutputSelection(states=every_step)
    return Reading(ids, mailbox, keep_state=not every_step, selection=selection, every_step=False), mailbox


def _arrays(selected: _Selection, finished: ReadingFinished, *, every_step: bool) -> list[NamedArray]:
    if isinstance(selected, OutputSpec):
        outputs = finished.outputs if every_step else finished.outputs[-1]
        return [NamedArray(selected, selected.name, outputs)]
    values = finished.states if every_step else finished.state
    assert values is not None
    return [NamedArray(spec, spec.input_name, values[spec.input_name]) for spec in selected]


def _check_response_size(
    selected: _Selection, inputs: Sequence[EncodedInput], resources: Resources, *, every_step: bool
) -> None:
    """Refuse to compute what could not be sent.

    Raises:
        ResponseTooLargeError: the response would have more bytes than a message may have.
    """
    if isinstance(selected, OutputSpec):
        fixed, per_step = _ARRAY_BYTES + len(selected.name), value_bytes(selected)
    else:
        fixed = sum(_ARRAY_BYTES + len(spec.input_name) for spec in selected)
        per_step = sum(map(value_bytes, selected))
    steps = sum(len(given.ids) for given in inputs)
    size = fixed * len(inputs) + (per_step * steps + _ID_BYTES * steps if every_step else per_step * len(inputs))
    limit = resources.limits.message_bytes
    if size > limit:
        got, rule = f"a response of about {size} bytes", f"at most {limit} are allowed"
        remedy = f"Ask {'for the last step only, ' if every_step else ''}for less in one request"
        raise ResponseTooLargeError("inputs", got, rule, remedy, size=size, limit=limit)
