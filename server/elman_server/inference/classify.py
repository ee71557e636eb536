"""The use case Classify: labels of an input as a whole, of its steps, or of the nodes of a tree."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from elman_server.errors import InvalidFieldError
from elman_server.inference.delivery import Mailbox
from elman_server.inference.input_forms import Input
from elman_server.inference.inputs import Steps, check_source_length, count_unknown, read_steps
from elman_server.inference.labels import Prediction, predict
from elman_server.inference.model import LabelOutput, ServedModel
from elman_server.inference.prefill import last_output
from elman_server.inference.readings import run_reading
from elman_server.inference.resources import Resources
from elman_server.inference.session_targets import check_target
from elman_server.inference.trees.reading import read_tree
from elman_server.scheduling import Reading, Source
from elman_server.sessions import TOKEN_TYPE, Target


@dataclass(frozen=True)
class ClassifyRequest:
    """A request to label an input.

    Attributes:
        model: name of the model; "" for the only one that suits.
        input: what to label.
        every_node: whether every node of a tree is labelled, or only the root.
        session: the session that the input continues; None for none.
        bypass_prefix_cache: whether the input is read in full.
    """

    model: str = ""
    input: Input | None = None
    every_node: bool = False
    session: Target | None = None
    bypass_prefix_cache: bool = False


@dataclass(frozen=True, slots=True)
class Classification:
    """The labels of an input.

    Attributes:
        model: name of the model.
        digest: digest of its bundle.
        prediction: the labels.
        session_position: position of the session after the call; None without a session.
        cached_token_count: number of tokens that the prefix cache has saved.
        unknown_token_count: how many tokens of the input the vocabulary does not have.
    """

    model: str
    digest: str
    prediction: Prediction
    session_position: int | None = None
    cached_token_count: int = 0
    unknown_token_count: int = 0


async def classify(resources: Resources, request: ClassifyRequest, caller: str) -> Classification:
    """Answer a request.

    Args:
        resources: what the server has.
        request: the request.
        caller: identity of the caller, whose prefix cache is used.

    Raises:
        DomainError: why it cannot be answered.
    """
    name, target = request.model, request.session
    if target is not None:
        check_target(target)
        name = name or await resources.sessions.model_of(target.session_id)
    model, labels = resources.models.that_labels(name)
    if target is not None:
        return await _in_session(resources, request, target, model, labels)
    if model.reads_trees:
        return await _tree(request, model, labels)
    return await _input(resources, request, caller, model, labels)


async def _tree(request: ClassifyRequest, model: ServedModel, output: LabelOutput) -> Classification:
    mailbox = Mailbox()
    tree = await read_tree(request.input, model, mailbox, every_node=request.every_node)
    logits = (await run_reading(model, tree, mailbox)).outputs
    prediction = await predict(output.labels, logits, len(tree.forced), every_step=request.every_node)
    unknown = count_unknown(tree.forced, model.vocabulary)
    return Classification(model.name, model.bundle.digest, prediction, unknown_token_count=unknown)


async def _in_session(
    resources: Resources, request: ClassifyRequest, target: Target, model: ServedModel, output: LabelOutput
) -> Classification:
    kept = model.for_sessions
    steps = await _read_steps(request, model, resources)
    tokens = array(TOKEN_TYPE, steps.values.tolist())
    found = await resources.sessions.reader.read(kept, target, tokens, every_step=output.every_step)
    prediction = await predict(output.labels, found.outputs, len(steps), every_step=output.every_step)
    return Classification(
        model.name,
        model.bundle.digest,
        prediction,
        session_position=found.end,
        unknown_token_count=steps.unknown_count,
    )


async def _input(
    resources: Resources, request: ClassifyRequest, caller: str, model: ServedModel, output: LabelOutput
) -> Classification:
    read = await _read_steps(request, model, resources)
    steps, cached = read.values, 0
    if model.reads_source_only:
        field = "text" if request.input is None else request.input.field
        check_source_length(steps, field, model)
        mailbox = Mailbox()
        reading = Reading(np.zeros(1, np.int64), mailbox, source=Source(steps), every_step=False)
        logits = (await run_reading(model, reading, mailbox)).outputs
    elif output.every_step or model.reads_numbers:
        mailbox = Mailbox()
        reading = Reading(steps, mailbox, every_step=output.every_step)
        logits = (await run_reading(model, reading, mailbox)).outputs
    else:
        digest, bypass = model.bundle.digest, request.bypass_prefix_cache
        prefix = resources.prefixes.look_up(digest, caller, steps, bypass=bypass, output_needed=True)
        cached = prefix.position
        logits = await last_output(model, steps, prefix)
    prediction = await predict(output.labels, logits, len(steps), every_step=output.every_step)
    return Classification(
        model.name,
        model.bundle.digest,
        prediction,
        cached_token_count=cached,
        unknown_token_count=read.unknown_count,
    )


async def _read_steps(request: ClassifyRequest, model: ServedModel, resources: Resources) -> Steps:
    """Return an input.

    Raises:
        InvalidFieldError: it is empty, cannot be encoded, or is not what the model reads.
    """
    if request.every_node:
        raise InvalidFieldError("every_node", "true", f"{model.name!r} does not read trees", "Leave it out")
    steps = await read_steps(request.input, model, resources.limits)
    if not len(steps):
        field = request.input.field if request.input else "tensor" if model.reads_numbers else "text"
        raise InvalidFieldError(field, "an empty input", "there is nothing to label")
    return steps
