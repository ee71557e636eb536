"""The consistency of manifests. Every error names the field by its path in manifest.json."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from elman_bundle.bundle_errors import BundleError
from elman_protos import v1
from elman_protos.element_types import BY_DATA_TYPE, element_type

MANIFEST_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


def validate_spec(spec: v1.ModelSpec, manifest: Path) -> None:
    """Check everything in a manifest that can be checked without the other files of the bundle.

    Args:
        spec: the manifest.
        manifest: its path, for errors.

    Raises:
        BundleError: the manifest is inconsistent. The message names the file, the field and the rule.
    """
    check = _Checker(manifest)
    check.that(
        spec.manifest_version == MANIFEST_VERSION,
        "manifest_version",
        f"is {spec.manifest_version}, but this elman reads version {MANIFEST_VERSION}",
    )
    check.that(
        _NAME.fullmatch(spec.name) is not None,
        "name",
        f"{spec.name!r} is not 1 to 64 letters, digits, '.', '_' or '-'",
    )
    check.that(spec.step.file != "", "step.file", "is missing: the path of the ONNX file")
    _check_vocabularies(spec, check)
    _check_tensors(spec, check)
    _check_encoder(spec, check)
    _check_meanings(spec, check)
    _check_tree(spec, check)


class _Checker:
    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest

    def that(self, holds: bool, field: str, message: str) -> None:
        if not holds:
            raise BundleError(f"{self.manifest}: {field} {message}")


def _check_vocabularies(spec: v1.ModelSpec, check: _Checker) -> None:
    _check_unique([vocabulary.name for vocabulary in spec.vocabularies], "vocabularies", check)
    for vocabulary in spec.vocabularies:
        field = f"vocabularies[{vocabulary.name}]"
        check.that(vocabulary.kind in v1.VocabularyKind.values()[1:], f"{field}.kind", "is missing or not known")
        check.that(vocabulary.size > 0, f"{field}.size", "must be at least 1")
        needs_file = vocabulary.kind != v1.VOCABULARY_KIND_BYTES
        check.that(bool(vocabulary.file) == needs_file, f"{field}.file", "is needed for every kind but BYTES")
        of_words, of_subwords = v1.VOCABULARY_KIND_WORDS, v1.VOCABULARY_KIND_SUBWORDS
        has_case = vocabulary.kind in (of_words, v1.VOCABULARY_KIND_SYMBOLS)
        check.that(has_case or not vocabulary.lower_case, f"{field}.lower_case", "is for WORDS and SYMBOLS only")
        of_bytes = vocabulary.kind in (v1.VOCABULARY_KIND_BYTES, of_subwords)
        newlines = of_bytes or not vocabulary.universal_newlines
        check.that(newlines, f"{field}.universal_newlines", "is for BYTES and SUBWORDS only")
        knows_all = vocabulary.kind == of_subwords and vocabulary.HasField("unknown_token_id")
        check.that(not knows_all, f"{field}.unknown_token_id", "is set, but with SUBWORDS nothing is unknown")
        for special in ("unknown_token_id", "begin_token_id", "end_token_id"):
            if vocabulary.HasField(special):
                token = getattr(vocabulary, special)
                inside = 0 <= token < vocabulary.size
                check.that(inside, f"{field}.{special}", f"is {token}, outside 0 to {vocabulary.size - 1}")


def _check_tensors(spec: v1.ModelSpec, check: _Checker) -> None:
    step = spec.step
    _check_unique(
        [
            *(tensor.name for tensor in step.inputs),
            *(constant.name for constant in step.constants),
            *(state.input_name for state in step.states),
        ],
        "step: graph inputs",
        check,
    )
    _check_unique(
        [output.name for output in step.outputs] + [state.output_name for state in step.states],
        "step: graph outputs",
        check,
    )
    reads = len(step.inputs) > 0 or spec.HasField("encoder")
    check.that(reads, "step.inputs", "is empty: a step without an encoder reads at least one input")
    check.that(len(step.outputs) > 0, "step.outputs", "is empty: a step computes at least one output")
    for tensor in step.inputs:
        _check_tensor(f"step.inputs[{tensor.name}]", tensor, check)
    for constant in step.constants:
        _check_tensor(f"step.constants[{constant.name}]", constant, check)
    for output in step.outputs:
        _check_tensor(f"step.outputs[{output.name}]", output, check)
    for state in step.states:
        field = f"step.states[{state.input_name}]"
        check.that(state.output_name != "", f"{field}.output_name", "is missing: the graph output with its next value")
        _check_tensor(field, state, check)


def _check_tensor(
    field: str, tensor: v1.InputSpec | v1.ConstantSpec | v1.StateSpec | v1.OutputSpec, check: _Checker
) -> None:
    check.that(tensor.data_type in BY_DATA_TYPE, f"{field}.data_type", "is missing or not known")
    check.that(all(size > 0 for size in tensor.shape), f"{field}.shape", f"{list(tensor.shape)} must be positive")
    check.that(
        0 <= tensor.row_axis <= len(tensor.shape),
        f"{field}.row_axis",
        f"is {tensor.row_axis}, but with the row axis the tensor has {len(tensor.shape) + 1} axes",
    )


def _check_encoder(spec: v1.ModelSpec, check: _Checker) -> None:
    encoded = [state.input_name for state in spec.step.states if state.HasField("encoded")]
    if not spec.HasField("encoder"):
        check.that(not encoded, f"step.states[{''.join(encoded[:1])}].encoded", "is set, but there is no encoder")
        variable = [constant.name for constant in spec.step.constants if constant.variable_length]
        field = f"step.constants[{''.join(variable[:1])}].variable_length"
        check.that(not variable, field, "is set, but there is no encoder")
        return
    encoder, longest = spec.encoder, spec.encoder.longest_source
    check.that(encoder.file != "", "encoder.file", "is missing: the path of the ONNX file")
    check.that(encoder.input.name != "", "encoder.input.name", "is missing: the graph input that takes the source")
    _check_tensor("encoder.input", encoder.input, check)
    check.that(encoder.input.row_axis == 0, "encoder.input.row_axis", "must be 0")
    check.that(encoder.length_name != "", "encoder.length_name", "is missing: the graph input that takes the lengths")
    _check_unique([encoder.input.name, encoder.length_name], "encoder: graph inputs", check)
    check.that(longest > 0, "encoder.longest_source", "must be at least 1")
    for state in spec.step.states:
        wrong = state.HasField("encoded") and not state.encoded
        check.that(not wrong, f"step.states[{state.input_name}].encoded", "must be true where it is set")
    given = [*encoded, *(constant.name for constant in spec.step.constants)]
    check.that(len(given) > 0, "encoder", "returns nothing: there are no constants, and no states that are encoded")
    for constant in spec.step.constants:
        field = f"step.constants[{constant.name}]"
        check.that(constant.row_axis == 0, f"{field}.row_axis", "must be 0")
        positions = not constant.variable_length or list(constant.shape[:1]) == [longest]
        check.that(positions, f"{field}.shape", f"must begin with the encoder's longest_source, {longest}")


def _check_tree(spec: v1.ModelSpec, check: _Checker) -> None:
    if not spec.step.HasField("tree"):
        return
    step, tree = spec.step, spec.step.tree
    check.that(not spec.HasField("encoder"), "encoder", "cannot be combined with step.tree")
    tokens = [tensor.token.vocabulary for tensor in step.inputs if tensor.HasField("token")]
    check.that(len(tokens) == len(step.inputs) == 1, "step.inputs", "of a tree must be one token")
    check.that(len(step.states) > 0, "step.states", "is empty: a node of a tree reads the states of its children")
    check.that(tree.child_count >= 0, "step.tree.child_count", "must not be negative")
    size = next(vocabulary.size for vocabulary in spec.vocabularies if vocabulary.name == tokens[0])
    inside = 0 <= tree.inner_token_id < size
    check.that(inside, "step.tree.inner_token_id", f"is {tree.inner_token_id}, outside 0 to {size - 1}")
    for state in step.states:
        field = f"step.states[{state.input_name}]"
        check.that(
            state.WhichOneof("initial_value") is None, field, "has an initial value, but a tree starts from zeros"
        )
        check.that(state.row_axis == 0, f"{field}.row_axis", "must be 0")
    meanings = [output.WhichOneof("meaning") for output in step.outputs]
    check.that("label_logits" in meanings, "step.outputs", "of a tree must have one with label_logits")
    check.that("next_token_logits" not in meanings, "step.outputs", "of a tree cannot have next_token_logits")


def _check_meanings(spec: v1.ModelSpec, check: _Checker) -> None:
    inputs = {f"step.inputs[{tensor.name}]": tensor for tensor in spec.step.inputs}
    if spec.HasField("encoder"):
        inputs["encoder.input"] = spec.encoder.input
    for path, tensor in inputs.items():
        if tensor.HasField("token"):
            field = f"{path}.token"
            _vocabulary_of(spec, field, tensor.token.vocabulary, check, of_labels=False)
            integer = element_type(tensor.data_type).is_integer
            check.that(integer and not tensor.shape, field, "needs an integer data_type and no shape: one id a row")
    meanings: Counter[str | None] = Counter(output.WhichOneof("meaning") for output in spec.step.outputs)
    for meaning in _OUTPUT_MEANINGS:
        check.that(meanings[meaning] <= 1, "step.outputs", f"has {meanings[meaning]} with {meaning}; at most 1 may")
    for output in spec.step.outputs:
        named = output.WhichOneof("meaning")
        if named is None:
            continue
        path = f"step.outputs[{output.name}]"
        vocabulary = _OUTPUT_MEANINGS[named](spec, output, f"{path}.{named}", check)
        # Logits of tokens may be padded, to a size that is fast to multiply.
        least = list(output.shape) > [vocabulary.size] and len(output.shape) == 1
        fits = list(output.shape) == [vocabulary.size] or (named == "next_token_logits" and least)
        check.that(
            fits and output.row_axis == 0,
            f"{path}.shape",
            f"is {list(output.shape)}, but {vocabulary.name!r} has {vocabulary.size} entries and the row axis is 0",
        )


def _check_next_token_logits(
    spec: v1.ModelSpec, output: v1.OutputSpec, field: str, check: _Checker
) -> v1.VocabularySpec:
    vocabulary = _vocabulary_of(spec, field, output.next_token_logits.vocabulary, check, of_labels=False)
    fed_back = [tensor.token.vocabulary for tensor in spec.step.inputs if tensor.HasField("token")]
    check.that(fed_back == [vocabulary.name], field, "needs one token input of the same vocabulary to feed back")
    return vocabulary


def _check_label_logits(spec: v1.ModelSpec, output: v1.OutputSpec, field: str, check: _Checker) -> v1.VocabularySpec:
    vocabulary = _vocabulary_of(spec, field, output.label_logits.vocabulary, check, of_labels=True)
    scoped = output.label_logits.scope in v1.LabelScope.values()[1:]
    check.that(scoped, f"{field}.scope", "is missing or not known")
    return vocabulary


# By the meaning of an output, what checks it and returns its vocabulary. A new meaning is registered here.
_OUTPUT_MEANINGS = {
    "next_token_logits": _check_next_token_logits,
    "label_logits": _check_label_logits,
}


def _vocabulary_of(spec: v1.ModelSpec, field: str, name: str, check: _Checker, *, of_labels: bool) -> v1.VocabularySpec:
    vocabularies = {vocabulary.name: vocabulary for vocabulary in spec.vocabularies}
    check.that(name in vocabularies, f"{field}.vocabulary", f"{name!r} is not one of {sorted(vocabularies)}")
    is_labels = vocabularies[name].kind == v1.VOCABULARY_KIND_LABELS
    expected = "of kind LABELS" if of_labels else "of text"
    check.that(is_labels == of_labels, f"{field}.vocabulary", f"{name!r} is not {expected}")
    return vocabularies[name]


def _check_unique(names: list[str], field: str, check: _Checker) -> None:
    check.that(all(names), field, "has an entry without a name")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    check.that(not twice, field, f"names {', '.join(twice)} twice")
