"""The checks of a module in torch alone, before it is exported: a graph would silently be something else.

A step is a function of its arguments: called twice with the same ones it has the same results, it leaves them as they
are, and it takes any number of rows.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from elman_export.contract import EncoderModule, Labels, Output, StepInterface, StepModule, Token
from elman_export.examples import Example, Sources, make_example, make_sources, run_encoder, run_step
from elman_export.export_error import ExportError
from elman_export.module_calls import call_initial_state
from elman_export.module_snapshot import ModuleSnapshot
from elman_export.source_lines import at, line_that_changes

TRACED_ROWS = 3
_OTHER_ROWS = (5, 1)
# Relative. What a step hides between its calls, or draws at random, changes far more.
_TOLERANCE = 1e-5
_STATE = "State is an argument and a result of step(): begin it in initial_state() and return it as the next state"
_NOISE = "A step is a function of its arguments; let noise be an input or a constant, and sample from the outputs"
_DROPOUT = "Use nn.Dropout, or give functional.dropout training=self.training, so that evaluation drops nothing"

Results = Mapping[str, Tensor]


def check_module(module: object) -> StepModule:
    """Check that an object has the methods of a step and can be traced on the CPU.

    Returns:
        The object, a StepModule.

    Raises:
        ExportError: it cannot.
    """
    name = type(module).__name__
    if not isinstance(module, nn.Module) or not isinstance(module, StepModule):
        raise ExportError(
            f"{name} needs the methods initial_state(rows) and step(inputs, constants, state) of a torch.nn.Module"
        )
    for path, submodule in module.named_modules(prefix="self"):
        if isinstance(submodule, torch.jit.ScriptModule):
            raise ExportError(
                f"{path}: got a torch.jit.ScriptModule, which cannot be traced. Give the module that it was made from"
            )
    devices = {str(value.device) for value in (*module.parameters(), *module.buffers()) if value.device.type != "cpu"}
    if devices:
        raise ExportError(
            f"{name}: got tensors on {min(devices)}; modules are exported from the CPU. Call .cpu() first"
        )
    return module


def graph_remedy(module: nn.Module) -> str:
    """What to change in a module whose graph onnxruntime cannot run, as sentences; empty if it is not known."""
    return "".join(
        f". {path} has proj_size={submodule.proj_size}, and the LSTM operator of ONNX has no projection: use "
        "nn.LSTMCell and nn.Linear"
        for path, submodule in module.named_modules(prefix="self")
        if isinstance(submodule, nn.LSTM) and submodule.proj_size
    )


def check_calls(module: StepModule, interface: StepInterface) -> None:
    """Check the results of a module's methods, that they are repeatable, and that they take any number of rows.

    Raises:
        ExportError: says which method, why, and the line of the module's source, if it is known.
    """
    _check_initial_state(module)
    if interface.source is not None:
        assert isinstance(module, EncoderModule)
        _check_encode(module, make_sources(interface.source, TRACED_ROWS, seed=0))
    example = make_example(module, interface, TRACED_ROWS, seed=0)
    _check_step(module, example, interface)
    for rows in _OTHER_ROWS:
        try:
            run_step(module, make_example(module, interface, rows, seed=rows), interface.outputs)
        except ExportError as error:
            raise ExportError(
                f"the module works with {TRACED_ROWS} rows, but not with {rows}: {error}. It must take any number of "
                "rows, from the shape of its arguments, as in torch.zeros(x.shape[0], 1)"
            ) from error


def _check_initial_state(module: StepModule) -> None:
    first, again, more = (call_initial_state(module, rows) for rows in (1, 1, TRACED_ROWS))
    if first.keys() != more.keys():
        raise ExportError(f"initial_state(): has {sorted(first)} for 1 row and {sorted(more)} for {TRACED_ROWS}")
    rule = "every sequence must start from the same"
    for name, value in first.items():
        if _differs(value, again[name]):
            raise ExportError(f"initial_state(1): {name} is different at every call; {rule}")
        if value.dtype != more[name].dtype or value.shape[1:] != more[name].shape[1:]:
            raise ExportError(
                f"initial_state(): {name} is {value.dtype} {tuple(value.shape)} for 1 row and {more[name].dtype} "
                f"{tuple(more[name].shape)} for {TRACED_ROWS}; a row must be the same for any number"
            )
        if any(_differs(value[0], row) for row in more[name]):
            raise ExportError(f"initial_state({TRACED_ROWS}): the rows of {name} differ; {rule}")


def _check_encode(module: EncoderModule, sources: Sources) -> None:
    arguments = {"source": sources.values, "lengths": sources.lengths}
    _check_repeatable(module, "encode()", lambda: run_encoder(module, sources), arguments)


def _check_step(module: StepModule, example: Example, interface: StepInterface) -> None:
    def call() -> Results:
        outputs, after = run_step(module, example, interface.outputs)
        return {**outputs, **{f"the next {name}": value for name, value in after.items()}}

    arguments = {f"inputs[{name!r}]": value for name, value in example.inputs.items()}
    arguments |= {f"constants[{name!r}]": value for name, value in example.constants.items()}
    arguments |= {f"state[{name!r}]": value for name, value in example.state.items()}
    results = _check_repeatable(module, "step()", call, arguments)
    for name, meaning in interface.outputs.items():
        _check_output(name, meaning, results[name], interface)


def _check_output(name: str, meaning: Output, value: Tensor, interface: StepInterface) -> None:
    if isinstance(meaning, Labels):
        width, of = len(meaning.names), "a logit for each of the labels"
    else:
        (width,) = (kind.vocabulary.size for kind in interface.inputs.values() if isinstance(kind, Token))
        of = "a logit for each token of the vocabulary"
    if value.shape[1:] != (width,):
        raise ExportError(f"step(): {name}: got shape {tuple(value.shape)}; it must be (rows, {width}), {of}")
    if not value.dtype.is_floating_point:
        raise ExportError(f"step(): {name}: got {value.dtype}; logits are floating-point numbers")


def _check_repeatable(
    module: Any, method: str, call: Callable[[], Results], arguments: Mapping[str, Tensor]
) -> Results:
    """Call a method twice with the same arguments.

    Returns:
        Its results.

    Raises:
        ExportError: it changes its arguments, or its results differ.
    """
    given = {name: value.clone() for name, value in arguments.items()}
    first = {name: value.clone() for name, value in call().items()}

    def changed() -> list[str]:
        return [name for name, value in arguments.items() if not torch.equal(value, given[name])]

    if names := changed():
        for name, value in arguments.items():
            value.copy_(given[name])
        line = line_that_changes(call, lambda: bool(changed()))
        raise ExportError(
            f"{method}: changes its argument {names[0]} in place{at(line)}; arguments belong to the caller. Compute a "
            "new tensor, as in h = h + x instead of h += x, or clone it first"
        )
    again = call()
    different = [name for name, value in first.items() if _differs(value, again[name])]
    if different:
        raise ExportError(
            f"{method}: is not repeatable: {different[0]} is different at the second call with the same arguments, "
            f"because {_reason(module, call)}"
        )
    return first


def _reason(module: nn.Module, call: Callable[[], Results]) -> str:
    """Why the results of a call differ, and what to write instead."""
    snapshot, before = ModuleSnapshot(module), _generators()
    line = line_that_changes(call, lambda: bool(snapshot.changes()))
    if changes := snapshot.changes():
        return f"it changes {changes[0]}{at(line)}. {_STATE}"
    if _generators() != before:
        before = _generators()
        line = line_that_changes(call, lambda: _generators() != before)
        remedy = _DROPOUT if line is not None and "drop" in line.text.lower() else _NOISE
        return f"it draws random numbers{at(line)}. {remedy}"
    return f"it depends on something else than its arguments and parameters. {_STATE}"


def _generators() -> Any:
    """The states of the random generators that all code shares."""
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), pickle.dumps(np.random.get_state(legacy=False))


def _differs(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return True
    return not torch.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
