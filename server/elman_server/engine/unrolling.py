"""K steps in one run: the step graph of a bundle is repeated K times, and the next token is chosen in between.

Unrolling knows no cell: it copies the nodes of the step, and the manifest says which tensors are connected. All copies
share the weights. The tensors it adds have the row on axis 0 and the step on axis 1.

Axes: B rows, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from elman_bundle import Bundle
from elman_protos import v1
from elman_protos.element_types import element_type
from elman_server.decoding.in_graph import (
    PREFIX,
    Choice,
    Filters,
    Nodes,
    Score,
    add_checks,
    add_choice,
    add_log_probabilities,
    add_score,
)
from elman_server.engine.conversion import Conversion, needs_conversion
from elman_server.engine.foreign_graphs import read_graph
from elman_server.engine.hoisting import hoist_constants
from elman_server.engine.interface import DEFAULT_OUTPUTS, OutputSelection

TOKENS = f"{PREFIX}tokens"  # int64 [B, K], the choice after each step
CHECKS = f"{PREFIX}checks"  # float32 [B, K], NaN where nothing could be chosen
LOGITS = f"{PREFIX}logits"  # float32 [B, V], after the last step, as the model returned them
TARGETS = f"{PREFIX}targets"  # int64 [B, K], the tokens that are scored; FREE: the chosen ones
LOG_PROBABILITIES = f"{PREFIX}log_probabilities"  # float32 [B, K]
UNIFORMS = f"{PREFIX}uniforms"  # float32 [B, K]
TEMPERATURES = f"{PREFIX}temperatures"  # float32 [B, 1]
FILTERS = Filters(f"{PREFIX}top_k", f"{PREFIX}top_p", f"{PREFIX}min_p", f"{PREFIX}candidates")


@dataclass(frozen=True)
class StepGraph:
    """A bundle's step graph, ready to be unrolled.

    Attributes:
        model: the graph.
        spec: the step in the manifest.
        vocabulary_size: of the generated tokens; 0 if the model generates none.
        forbidden_token: a token that is never generated.
        conversion: what the file was converted by, if that was necessary.
    """

    model: onnx.ModelProto
    spec: v1.StepSpec
    vocabulary_size: int
    forbidden_token: int | None
    conversion: Conversion | None = None

    @property
    def generates(self) -> bool:
        return self.vocabulary_size > 0


def read_step_graph(bundle: Bundle, seconds: float) -> StepGraph:
    """Read a bundle's step graph, converted where necessary, and with its constants as initializers.

    Args:
        bundle: the model.
        seconds: how long a run may take, such as that of constants.

    Raises:
        ModelLoadError: the file is no ONNX graph, or cannot be converted.
    """
    model, conversion = read_graph(bundle.graph_path), None
    tensors: dict[str, TensorProto] = {}
    if needs_conversion(model):
        conversion = Conversion(model, bundle.graph_path)
        model, tensors = conversion.copy(), conversion.tensors
    model = hoist_constants(model, bundle.graph_path, seconds, tensors)
    spec = bundle.spec.step
    for output in spec.outputs:
        if output.HasField("next_token_logits"):
            text = bundle.vocabulary_spec(output.next_token_logits.vocabulary)
            forbidden = text.unknown_token_id if text.HasField("unknown_token_id") else None
            return StepGraph(model, spec, text.size, forbidden, conversion)
    return StepGraph(model, spec, 0, None, conversion)


def next_name(input_name: str) -> str:
    """The name of an output with a state after the last step. The step's own name for it may be that of an input, or
    be the next value of two states."""
    return f"{PREFIX}next.{input_name}"


def steps_name(output: str) -> str:
    """The name of an output with the values of the step's output `output` at every step."""
    return f"{PREFIX}steps.{output}"


def states_name(input_name: str) -> str:
    """The name of an output with the values of a state after every step."""
    return f"{PREFIX}states.{input_name}"


def unroll(
    step: StepGraph, count: int, *, filtered: bool = False, selection: OutputSelection = DEFAULT_OUTPUTS
) -> onnx.ModelProto:
    """Unroll `count` steps into one graph.

    Inputs: those of the step, with the step on axis 1 (a negative token: the row reads its own choice); the constants
    and states; UNIFORMS and TEMPERATURES if the model generates; FILTERS if `filtered`; TARGETS if log-probabilities
    are selected.

    Outputs: the states after the last step, named by `next_name`; each output with labels (each output, if outputs are
    selected) with the step on axis 1, named by `steps_name`; TOKENS and CHECKS if the model generates, and LOGITS and
    LOG_PROBABILITIES if they are selected; the states after every step if they are selected, named by `states_name`.

    The row is axis 0 of all of them, whichever axis it is in the step.

    Args:
        step: the step.
        count: the number of steps.
        filtered: whether rows have top-k, top-p or min-p.
        selection: the outputs beyond tokens and labels.
    """
    return _Unrolled(step, count, filtered, selection).model()


class _Unrolled:
    def __init__(self, step: StepGraph, count: int, filtered: bool, selection: OutputSelection) -> None:
        self._step = step
        self._count = count
        self._filtered = filtered and step.generates
        self._scored = selection.log_probabilities and step.generates
        self._logits_wanted = selection.logits and step.generates
        self._kept_states = step.spec.states if selection.states else []
        self._shown = [output for output in step.spec.outputs if selection.outputs or output.HasField("label_logits")]
        computed = {name for node in step.model.graph.node for name in node.output}
        # A state that is computed on other axes, that is an input, or that is the next value of two, becomes an output
        # by a node of its own.
        self._direct = {
            kept.output_name: next_name(kept.input_name)
            for kept in reversed(step.spec.states)
            if not kept.row_axis and kept.output_name in computed
        }
        self._nodes = Nodes()

    def model(self) -> onnx.ModelProto:
        spec, graph = self._step.spec, self._step.model.graph
        state = {kept.input_name: self._turned(kept.input_name, kept) for kept in spec.states}
        constants = {kept.name: self._turned(kept.name, kept) for kept in spec.constants}
        shown: dict[str, list[str]] = {steps_name(output.name): [] for output in self._shown}
        shown |= {states_name(kept.input_name): [] for kept in self._kept_states}
        choices: list[Choice] = []
        scores: list[Score] = []
        inputs = {given.name: self._inputs(given) for given in spec.inputs}
        uniforms = self._columns(UNIFORMS) if self._step.generates else []
        target = self._targets() if self._scored else None
        for index in range(self._count):
            wires = {given.name: inputs[given.name](index, choices) for given in spec.inputs} | constants | state
            if index == self._count - 1:  # The state after the last step is an output of the graph.
                wires |= self._direct
            self._copy(graph.node, wires, f"step{index}/")
            state = {kept.input_name: wires[kept.output_name] for kept in spec.states}
            for output in self._shown:
                shown[steps_name(output.name)].append(self._one_step(wires[output.name], output))
            for kept in self._kept_states:
                shown[states_name(kept.input_name)].append(self._one_step(wires[kept.output_name], kept))
            if self._step.generates:
                logits = self._logits(wires)
                choices.append(self._choose(logits, uniforms[index]))
                if target:
                    token = target(index, choices[-1])
                    scores.append(add_score(self._nodes, logits, token, self._step.vocabulary_size))
                if self._logits_wanted and index == self._count - 1:
                    self._nodes.add("Identity", logits, output=LOGITS)
        for kept in spec.states:
            value, name = state[kept.input_name], next_name(kept.input_name)
            if kept.row_axis:
                self._nodes.add("Transpose", value, output=name, perm=_rows_first(kept))
            elif value != name:
                self._nodes.add("Identity", value, output=name)
        for name, steps in shown.items():
            self._nodes.add("Concat", *steps, output=name, axis=1)
        if self._step.generates:
            self._nodes.add("Concat", *(choice.token for choice in choices), output=TOKENS, axis=1)
            add_checks(self._nodes, choices, self._step.vocabulary_size, CHECKS)
        if self._scored:
            add_log_probabilities(self._nodes, scores, LOG_PROBABILITIES)
        return self._assemble()

    def _turned(self, name: str, spec: v1.InputSpec | v1.ConstantSpec | v1.StateSpec) -> str:
        """A row-first tensor with its rows on the axis that the step expects."""
        if not spec.row_axis:
            return name
        order = [*range(1, spec.row_axis + 1), 0, *range(spec.row_axis + 1, len(spec.shape) + 1)]
        return self._nodes.add("Transpose", name, perm=order)

    def _one_step(self, name: str, spec: v1.StateSpec | v1.OutputSpec) -> str:
        """[B, 1, *shape] of a tensor that has its rows on the axis that the step expects."""
        if spec.row_axis:
            name = self._nodes.add("Transpose", name, perm=_rows_first(spec))
        return self._nodes.add("Unsqueeze", name, self._int64([1]))

    def _columns(self, name: str) -> list[str]:
        """[B, K] as K times [B, 1]."""
        if self._count == 1:
            return [name]
        return self._nodes.split(name, self._count, axis=1)

    def _inputs(self, given: v1.InputSpec) -> Callable[[int, list[Choice]], str]:
        """Returns a function from a step and the choices before it to the tensor of an input."""
        if not given.HasField("token"):
            return lambda index, _: self._turned(
                self._nodes.add("Gather", given.name, self._nodes.constant(np.int64(index)), axis=1), given
            )
        values = self._columns(given.name)
        free: list[str] = []
        if self._step.generates and self._count > 1:  # The first step of a run never reads its own choice.
            nothing = self._nodes.constant(np.zeros((), element_type(given.data_type).dtype))
            free = self._columns(self._nodes.add("Less", given.name, nothing))

        def token(index: int, choices: list[Choice]) -> str:
            value = values[index]
            if choices:
                own = choices[-1].token
                if given.data_type != v1.DATA_TYPE_INT64:
                    own = self._nodes.add("Cast", own, to=element_type(given.data_type).onnx_type)
                value = self._nodes.add("Where", free[index], own, value)
            return self._turned(self._nodes.add("Squeeze", value, self._int64([1])), given)

        return token

    def _targets(self) -> Callable[[int, Choice], str]:
        """Returns a function from a step and its choice to the token whose log-probability is returned."""
        targets = self._columns(TARGETS)
        free = self._columns(self._nodes.add("Less", TARGETS, self._nodes.constant(np.int64(0))))
        return lambda index, choice: self._nodes.add("Where", free[index], choice.token, targets[index])

    def _logits(self, wires: dict[str, str]) -> str:
        """A step's logits, float32 [B, V]."""
        output = next(output for output in self._step.spec.outputs if output.HasField("next_token_logits"))
        logits = wires[output.name]
        if output.shape[0] > self._step.vocabulary_size:  # No token has the others, so none is ever chosen.
            bounds = (self._int64([bound]) for bound in (0, self._step.vocabulary_size, 1))
            logits = self._nodes.add("Slice", logits, *bounds)
        if output.data_type == v1.DATA_TYPE_FLOAT32:
            return logits
        return self._nodes.add("Cast", logits, to=TensorProto.FLOAT)

    def _choose(self, logits: str, uniforms: str) -> Choice:
        return add_choice(
            self._nodes,
            logits,
            self._step.vocabulary_size,
            uniforms=uniforms,
            temperatures=TEMPERATURES,
            forbidden_token=self._step.forbidden_token,
            filters=FILTERS if self._filtered else None,
        )

    def _copy(self, nodes: Iterable[onnx.NodeProto], wires: dict[str, str], prefix: str) -> None:
        """Copy the nodes of the step. `wires` maps its tensors to their names in this copy, and is extended."""
        for node in nodes:
            for name in node.output:
                if name:
                    wires.setdefault(name, prefix + name)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name if node.name else ""
            _rename(copy, wires)
            self._nodes.nodes.append(copy)

    def _assemble(self) -> onnx.ModelProto:
        step, spec = self._step.model, self._step.spec
        steps: list[str | int] = ["rows", self._count]
        inputs = [_value(given.name, given.data_type, [*steps, *given.shape]) for given in spec.inputs]
        for kept in spec.constants:
            shape: list[str | int] = ["positions", *kept.shape[1:]] if kept.variable_length else [*kept.shape]
            inputs.append(_value(kept.name, kept.data_type, ["rows", *shape]))
        inputs += [_value(state.input_name, state.data_type, ["rows", *state.shape]) for state in spec.states]
        outputs = [_value(next_name(kept.input_name), kept.data_type, ["rows", *kept.shape]) for kept in spec.states]
        outputs += [_value(steps_name(shown.name), shown.data_type, [*steps, *shown.shape]) for shown in self._shown]
        outputs += [
            _value(states_name(kept.input_name), kept.data_type, [*steps, *kept.shape]) for kept in self._kept_states
        ]
        if self._step.generates:
            inputs.append(_value(UNIFORMS, v1.DATA_TYPE_FLOAT32, steps))
            inputs.append(_value(TEMPERATURES, v1.DATA_TYPE_FLOAT32, ["rows", 1]))
            outputs.append(_value(TOKENS, v1.DATA_TYPE_INT64, steps))
            outputs.append(_value(CHECKS, v1.DATA_TYPE_FLOAT32, steps))
        if self._scored:
            inputs.append(_value(TARGETS, v1.DATA_TYPE_INT64, steps))
            outputs.append(_value(LOG_PROBABILITIES, v1.DATA_TYPE_FLOAT32, steps))
        if self._logits_wanted:
            outputs.append(_value(LOGITS, v1.DATA_TYPE_FLOAT32, ["rows", self._step.vocabulary_size]))
        if self._filtered:
            inputs.append(_value(FILTERS.top_k, v1.DATA_TYPE_INT64, ["rows", 1]))
            inputs.append(_value(FILTERS.top_p, v1.DATA_TYPE_FLOAT32, ["rows", 1]))
            inputs.append(_value(FILTERS.min_p, v1.DATA_TYPE_FLOAT32, ["rows", 1]))
            inputs.append(_value(FILTERS.candidates, v1.DATA_TYPE_INT64, [1]))
        graph = helper.make_graph(
            self._nodes.nodes,
            f"{self._count} steps",
            inputs,
            outputs,
            [*step.graph.initializer, *self._nodes.constants],
            sparse_initializer=step.graph.sparse_initializer,
        )
        return helper.make_model(
            graph, opset_imports=step.opset_import, functions=step.functions, ir_version=step.ir_version
        )

    def _int64(self, values: list[int]) -> str:
        return self._nodes.constant(np.array(values, np.int64))


def _rows_first(spec: v1.StateSpec | v1.OutputSpec) -> list[int]:
    """The permutation of axes that moves the row to the front."""
    return [spec.row_axis, *(axis for axis in range(len(spec.shape) + 1) if axis != spec.row_axis)]


def _rename(node: onnx.NodeProto, wires: dict[str, str]) -> None:
    """Rename the tensors of a node, and of the graphs inside it."""
    node.input[:] = [wires.get(name, name) for name in node.input]
    node.output[:] = [wires.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            own = {value.name for value in graph.input} | {value.name for value in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            outer = {name: wire for name, wire in wires.items() if name not in own}
            for inner in graph.node:
                _rename(inner, outer)
            _rename_outputs(graph, outer)


def _rename_outputs(graph: Any, wires: dict[str, str]) -> None:
    for value in graph.output:
        value.name = wires.get(value.name, value.name)


def _value(name: str, data_type: v1.DataType.ValueType, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(data_type).onnx_type, shape)
