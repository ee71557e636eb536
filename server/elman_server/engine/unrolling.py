"""K steps in one run: the step graph of a bundle is repeated K times, and the next token is chosen in between.

Unrolling knows no cell: it copies the nodes of the step, and the manifest says which tensors are connected. All copies
share the weights. The tensors it adds have the row on axis 0 and the step on axis 1.

The names of a bundle may be any. In an unrolled graph they follow a prefix each, by which they can equal neither each
other nor those that the server adds: `given_name` and the like for what the manifest names, "weights/" for weights, and
"step0/" and so on for what the copies of the step compute.

Axes: B rows, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

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
from elman_server.engine.float16 import compute_in_float32
from elman_server.engine.foreign_graphs import read_graph
from elman_server.engine.hoisting import hoist_constants
from elman_server.engine.interface import DEFAULT_OUTPUTS, OutputSelection
from elman_server.engine.nested_graphs import graphs_inside
from elman_server.engine.providers import Opener

TOKENS = f"{PREFIX}tokens"  # int64 [B, K], the choice after each step
CHECKS = f"{PREFIX}checks"  # float32 [B, K], NaN where nothing could be chosen
LOGITS = f"{PREFIX}logits"  # float32 [B, V], after the last step, as the model returned them
TARGETS = f"{PREFIX}targets"  # int64 [B, K], the tokens that are scored; FREE: the chosen ones
LOG_PROBABILITIES = f"{PREFIX}log_probabilities"  # float32 [B, K]
UNIFORMS = f"{PREFIX}uniforms"  # float32 [B, K]
TEMPERATURES = f"{PREFIX}temperatures"  # float32 [B, 1]
FILTERS = Filters(f"{PREFIX}top_k", f"{PREFIX}top_p", f"{PREFIX}min_p", f"{PREFIX}candidates")

_WEIGHTS = "weights/"


@dataclass(frozen=True)
class StepGraph:
    """A bundle's step graph, ready to be unrolled.

    Attributes:
        model: the graph. Its weights have other names than its nodes use, see `weights`.
        weights: by the names that its nodes use, the names of its weights.
        spec: the step in the manifest.
        vocabulary_size: of the generated tokens; 0 if the model generates none.
        forbidden_tokens: the tokens that are never generated.
        separated: whether onnxruntime is kept from fusing what makes an output or a state with what reads it. It fuses
            operators across the copies of the step otherwise, and leaves out roundings to float16 between them, so the
            results of several steps in a run would differ from those of single steps.
    """

    model: onnx.ModelProto
    weights: Mapping[str, str]
    spec: v1.StepSpec
    vocabulary_size: int
    forbidden_tokens: tuple[int, ...]
    separated: bool = False

    @property
    def generates(self) -> bool:
        return self.vocabulary_size > 0


def read_step_graph(bundle: Bundle, seconds: float, opener: Opener | None = None, *, on_cpu: bool = True) -> StepGraph:
    """Read a bundle's step graph, converted where necessary, and with its constants as initializers.

    Args:
        bundle: the model.
        seconds: how long a run may take, such as that of constants.
        opener: with it, a converted graph is compared with the original.
        on_cpu: whether it runs on the CPU.

    Raises:
        ModelLoadError: the file is no ONNX graph, or cannot be converted.
    """
    model = _converted(bundle, seconds, opener)
    if on_cpu:
        compute_in_float32(model)
    weights = _rename_weights(model.graph)
    spec = bundle.spec.step
    for output in spec.outputs:
        if output.HasField("next_token_logits"):
            name = output.next_token_logits.vocabulary
            size, forbidden = bundle.vocabulary_spec(name).size, bundle.ungenerated_ids(name)
            return StepGraph(model, weights, spec, size, forbidden)
    return StepGraph(model, weights, spec, 0, ())


def _converted(bundle: Bundle, seconds: float, opener: Opener | None) -> onnx.ModelProto:
    model = read_graph(bundle.graph_path)
    if not needs_conversion(model):
        return hoist_constants(model, bundle.graph_path, seconds, {})
    conversion = Conversion(model, bundle.graph_path)
    converted = hoist_constants(conversion.copy(), bundle.graph_path, seconds, conversion.tensors)
    if opener is not None:
        conversion.check(bundle, converted, opener, seconds)
    return converted


def _rename_weights(graph: onnx.GraphProto) -> dict[str, str]:
    """Give the weights the names that they have in unrolled graphs; returns these by the old ones."""
    names: dict[str, str] = {}
    for weight in _weights(graph):
        names[weight.name] = f"{_WEIGHTS}{weight.name}"
        weight.name = names[weight.name]
    return names


def _weights(graph: onnx.GraphProto) -> list[TensorProto]:
    return [*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer)]


def given_name(name: str) -> str:
    """The name of an input with the values of the step's input, constant or state `name`."""
    return f"{PREFIX}given.{name}"


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
    and states, all named by `given_name`; UNIFORMS and TEMPERATURES if the model generates; FILTERS if `filtered`;
    TARGETS if log-probabilities are selected.

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
        named: list[tuple[str, v1.StateSpec | v1.OutputSpec]] = [
            *((kept.output_name, kept) for kept in step.spec.states),
            *((shown.name, shown) for shown in step.spec.outputs),
        ]
        self._separated = {name: spec for name, spec in named if step.separated and name in computed}
        self._values: list[onnx.ValueInfoProto] = []
        self._nodes = Nodes()

    def model(self) -> onnx.ModelProto:
        spec, graph = self._step.spec, self._step.model.graph
        state = {kept.input_name: self._turned(given_name(kept.input_name), kept) for kept in spec.states}
        constants = {kept.name: self._turned(given_name(kept.name), kept) for kept in spec.constants}
        shown: dict[str, list[str]] = {steps_name(output.name): [] for output in self._shown}
        shown |= {states_name(kept.input_name): [] for kept in self._kept_states}
        choices: list[Choice] = []
        scores: list[Score] = []
        inputs = {given.name: self._inputs(given) for given in spec.inputs}
        uniforms = self._columns(UNIFORMS) if self._step.generates else []
        target = self._targets() if self._scored else None
        for index in range(self._count):
            wires = {**self._step.weights, **constants, **state}
            wires |= {given.name: inputs[given.name](index, choices) for given in spec.inputs}
            # The state after the last step is an output of the graph.
            direct = self._direct if index == self._count - 1 else {}
            self._copy(graph.node, wires, direct, f"step{index}/")
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
        name = given_name(given.name)
        if not given.HasField("token"):
            return lambda index, _: self._turned(
                self._nodes.add("Gather", name, self._nodes.constant(np.int64(index)), axis=1), given
            )
        values = self._columns(name)
        free: list[str] = []
        if self._step.generates and self._count > 1:  # The first step of a run never reads its own choice.
            nothing = self._nodes.constant(np.zeros((), element_type(given.data_type).dtype))
            free = self._columns(self._nodes.add("Less", name, nothing))

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
            forbidden_tokens=self._step.forbidden_tokens,
            filters=FILTERS if self._filtered else None,
        )

    def _copy(
        self, nodes: Iterable[onnx.NodeProto], wires: dict[str, str], direct: dict[str, str], prefix: str
    ) -> None:
        """Copy the nodes of the step.

        Args:
            nodes: the nodes.
            wires: by the names of its tensors, their names in this copy; extended.
            direct: the same for tensors that are outputs of the unrolled graph.
            prefix: of all other names in this copy.
        """
        for node in nodes:
            for name in filter(None, node.output):
                separated = name in self._separated
                wires[name] = prefix + name if separated else direct.get(name, prefix + name)
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = prefix + node.name if node.name else ""
            _rename(copy, wires, prefix)
            self._nodes.nodes.append(copy)
        for name, spec in self._separated.items():
            wires[name] = self._separate(wires[name], spec, direct.get(name))

    def _separate(self, name: str, spec: v1.StateSpec | v1.OutputSpec, output: str | None) -> str:
        """Pass a tensor on in a sequence, with which onnxruntime fuses nothing. Operators on tensors alone it would
        convert to float32 together with their neighbours."""
        sequence = self._nodes.add("SequenceConstruct", name)
        passed = self._nodes.add("SequenceAt", sequence, self._nodes.constant(np.int64(0)), output=output)
        if output is None:  # The shape decides about fusions, too, and is not inferred through sequences.
            shape: list[str | int] = [*spec.shape]
            shape.insert(spec.row_axis, "rows")
            self._values.append(_value(passed, spec.data_type, shape))
        return passed

    def _assemble(self) -> onnx.ModelProto:
        step, spec = self._step.model, self._step.spec
        steps: list[str | int] = ["rows", self._count]
        inputs = [_value(given_name(given.name), given.data_type, [*steps, *given.shape]) for given in spec.inputs]
        for kept in spec.constants:
            shape: list[str | int] = ["positions", *kept.shape[1:]] if kept.variable_length else [*kept.shape]
            inputs.append(_value(given_name(kept.name), kept.data_type, ["rows", *shape]))
        inputs += [_value(given_name(kept.input_name), kept.data_type, ["rows", *kept.shape]) for kept in spec.states]
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
            value_info=self._values,
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


def _rename(node: onnx.NodeProto, wires: dict[str, str], prefix: str) -> None:
    """Rename the tensors of a node by `wires`. What the graphs inside it compute themselves gets the prefix."""
    node.input[:] = [wires.get(name, name) for name in node.input]
    node.output[:] = [wires.get(name, name) for name in node.output]
    for graph in graphs_inside(node):
        _rename_graph(graph, wires, prefix)


def _rename_graph(graph: onnx.GraphProto, outer: dict[str, str], prefix: str) -> None:
    named: list[onnx.ValueInfoProto | TensorProto] = [*graph.input, *_weights(graph)]
    own = {value.name for value in named} | {name for node in graph.node for name in node.output}
    wires = outer | {name: prefix + name for name in own if name}
    for value in (*named, *graph.output, *graph.value_info):
        value.name = wires.get(value.name, value.name)
    for node in graph.node:
        _rename(node, wires, prefix)


def _value(name: str, data_type: v1.DataType.ValueType, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type(data_type).onnx_type, shape)
