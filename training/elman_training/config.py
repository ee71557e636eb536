"""Everything that decides what a training run computes.

A run is a function of its configuration and its corpus: the same two give the same numbers on the same machine. A field
with a description is an option of `elman train`, and `elman_training.options` lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

from elman_bundle.vocabulary_files import InputKind, VocabularySpec, vocabulary_spec
from elman_training.cells import CellName
from elman_training.corpus_files import STDLIB
from elman_training.trees import TreeCellName

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["float32", "bfloat16"]

_BYTES = 256
DIGITS = "digits"  # the embedded images
STORIES = "stories"  # generated, not read
_LEARNED: tuple[InputKind, ...] = ("words", "subwords", "symbols")
_COUNTED: tuple[InputKind, ...] = ("characters", "words", "symbols")


def _only(**conditions: tuple[str, ...]) -> dict[str, Any]:
    """A field has an effect only where one of these other fields has one of these values."""
    return {"only": {name: list(values) for name, values in conditions.items()}}


class RunConfig(BaseModel):
    """What every training run decides, whatever it learns.

    Attributes:
        preset: the preset that the run was started with, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = None
    task: str
    corpus: str = Field(
        description="What to learn from: a file or folder in the format of the task, or an embedded corpus (see below)."
    )
    dropout: Share = Field(0.1, description="Share of activations that are dropped while training.")
    lanes: Positive = Field(64, description="Rows of a batch.")
    steps: Positive = Field(1000, description="Steps of the optimizer.")
    learning_rate: Annotated[float, Field(gt=0)] = Field(
        2e-3, description="Learning rate of AdamW between the warm-up and the cosine decay."
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        50, description="Steps in which the learning rate rises from zero."
    )
    final_learning_rate: Share = Field(
        0.05, description="Learning rate at the end of the cosine decay, as a share of --learning-rate."
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Weight decay of the matrices.")
    clip_norm: Annotated[float, Field(gt=0)] = Field(1.0, description="Largest norm of the gradient.")
    average_decay: Share = Field(
        0.0, description="Decay of the running mean of the weights, which is validated and kept; 0 keeps the weights."
    )
    precision: Precision = Field(
        "float32", description="Precision of the products while training; bfloat16 is fast on processors that have it."
    )
    validate_every: Positive = Field(100, description="Steps between two validations.")
    validation_limit: Positive = Field(
        200_000, description="Most tokens (lm), characters (tag) or examples of the held-out part that are used."
    )
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(0, description="Seed of everything random.")

    def vocabularies(self) -> dict[str, VocabularySpec]:
        """The vocabularies of a run: by the prefix of their files' names, what a manifest says of each but its size."""
        return {}

    @property
    def network_name(self) -> str:
        """The network in a few words, for people."""
        raise NotImplementedError


class TextConfig(RunConfig):
    """A network that reads text and predicts something at each token, or after the last one."""

    task: Literal["lm", "classify", "tag"] = Field(
        description="lm: a language model. classify: a class for a whole text. tag: a label for every character."
    )
    corpus: str = Field(
        STDLIB,
        description="'stdlib', the source of Python's standard library. lm: or a UTF-8 file, or a folder of such. "
        "classify: or a folder with one CLASS.txt a class, one example a line; a TSV file of text TAB label; a folder "
        "with train.txt, dev.txt and test.txt of labelled trees, one s-expression a line. tag: or a folder of Python "
        "files; a TSV file of piece TAB label (\\n, \\r, \\t and \\\\ stand for newline, carriage return, tab and "
        "backslash in a piece) with an empty line between documents.",
    )
    corpus_limit: Positive | None = Field(
        None, description="Characters of the corpus to read.", json_schema_extra=_only(task=("lm", "tag"))
    )
    vocabulary: InputKind = Field(
        "characters",
        description="what a token is. words: each with the space before it; also one digit, or a run of one other "
        "character or of white space. subwords: byte sequences that are frequent in the corpus. symbols: anything "
        "between white space.",
    )
    vocabulary_size: Positive = Field(
        4096, description="most tokens of the vocabulary.", json_schema_extra=_only(vocabulary=_LEARNED)
    )
    lower_case: bool = Field(False, description="Convert words to lower case first.")
    minimum_count: Positive = Field(
        2,
        description="Characters and words that are rarer are read as the unknown token.",
        json_schema_extra=_only(vocabulary=_COUNTED),
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="share kept for validation, unless the corpus says which: the end of a text, or of each class."
    )

    cell: CellName = Field("lstm", description="the recurrent cell.")
    layers: Positive = Field(2, description="Layers.")
    embedding: Positive = Field(128, description="Features of a token's embedding.")
    hidden: Positive = Field(256, description="Units of a layer.")
    bidirectional: bool = Field(
        False,
        description="read the whole text in both directions before classifying it.",
        json_schema_extra=_only(task=("classify",)),
    )

    phrases: bool = Field(
        False,
        description="Learn from every phrase of a treebank, not from its sentences alone.",
        json_schema_extra=_only(task=("classify",)),
    )
    polarity: bool = Field(
        False,
        description="Make two classes of a treebank's labels 0 to 4, without the neutral ones.",
        json_schema_extra=_only(task=("classify",)),
    )

    # For lm and tag, a row of the batch is a contiguous stretch of the text.
    window: Positive = Field(
        128, description="Steps of back-propagation through time.", json_schema_extra=_only(task=("lm", "tag"))
    )
    restart: Share = Field(
        0.05,
        description="Probability that a row of the batch starts from the initial state at a window.",
        json_schema_extra=_only(task=("lm",)),
    )

    @field_validator("vocabulary")
    @classmethod
    def _check_vocabulary(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("task") == "tag" and value not in ("characters", "bytes"):
            raise ValueError("a tagger labels every character, so it reads characters or bytes")
        return value

    @field_validator("vocabulary_size")
    @classmethod
    def _check_vocabulary_size(cls, value: int, info: ValidationInfo) -> int:
        return _checked_size(value, info.data.get("vocabulary"))

    @field_validator("lower_case")
    @classmethod
    def _check_lower_case(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("vocabulary") not in ("words", "symbols"):
            raise ValueError("only the vocabularies words and symbols can be in lower case")
        return value

    @field_validator("bidirectional", "phrases", "polarity")
    @classmethod
    def _check_of_classification(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("task") != "classify":
            raise ValueError("only the task classify has it")
        return value

    def vocabularies(self) -> dict[str, VocabularySpec]:
        return {"": vocabulary_spec(self.vocabulary, lower_case=self.lower_case)}

    @property
    def network_name(self) -> str:
        both = "bidirectional " if self.bidirectional else ""
        return f"{self.layers} x {both}{self.cell} of {self.hidden} units"


class FeaturesConfig(RunConfig):
    """A feed-forward network that classifies rows of numbers."""

    task: Literal["features"] = Field(description="features: a class for a row of numbers, by a feed-forward network.")
    corpus: str = Field(
        DIGITS,
        description="'digits', images of handwritten digits; a .csv or .tsv file of numbers with a label in the last "
        "column; or a .npz file with the arrays values and labels.",
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(0.1, description="share of each class kept for validation.")
    test_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="Share of each class kept for the test, before anything is held out for validation."
    )

    layers: Positive = Field(2, description="Layers.")
    hidden: Positive = Field(128, description="Units of a layer.")
    input_noise: Annotated[float, Field(ge=0)] = Field(
        0.0, description="Standard deviation of the noise that is added to the scaled inputs while training."
    )

    @property
    def network_name(self) -> str:
        return f"{self.layers} hidden layers of {self.hidden} units"


class TreeConfig(RunConfig):
    """A network that reads trees whose leaves are words, and labels every node."""

    vocabulary: ClassVar[InputKind] = "symbols"

    task: Literal["tree"] = Field(description="tree: a label for every node of a tree.")
    corpus: str = Field(
        description="a folder with train.txt, dev.txt and test.txt, one tree a line, written (label word) or (label "
        "child child)."
    )
    vocabulary_size: Positive = Field(20_000, description="most tokens of the vocabulary.")
    lower_case: bool = Field(True, description="Convert words to lower case first.")
    minimum_count: Positive = Field(2, description="Characters and words that are rarer are read as the unknown token.")
    label_names: tuple[str, ...] = ()  # of the corpus's labels in alphabetical order; none: as they are written

    cell: TreeCellName = Field("child-sum", description="child-sum and binary are Tree-LSTMs.")
    embedding: Positive = Field(64, description="Features of a token's embedding.")
    hidden: Positive = Field(128, description="Units of a layer.")
    lanes: Positive = Field(32, description="Rows of a batch.")

    def vocabularies(self) -> dict[str, VocabularySpec]:
        return {"": vocabulary_spec(self.vocabulary, lower_case=self.lower_case)}

    @property
    def network_name(self) -> str:
        return f"{self.cell} tree of {self.hidden} units"


class TranslationConfig(RunConfig):
    """An encoder-decoder: it reads a whole source, then writes a target."""

    task: Literal["translate"] = Field(description="translate: a text for a text, by an encoder and a decoder.")
    corpus: str = Field(
        description="'stories', generated questions with answers; a folder of CMUdict or Multi30k; or a TSV file of "
        "source TAB target."
    )
    held_out: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="share of the pairs kept for validation, unless the corpus says which."
    )
    source_vocabulary: InputKind = Field("subwords", description="What a token of the source is.")
    source_vocabulary_size: Positive = Field(
        4096,
        description="Most tokens of the source's vocabulary.",
        json_schema_extra=_only(source_vocabulary=_LEARNED),
    )
    vocabulary: InputKind = Field("subwords", description="what a token of the target is.")
    vocabulary_size: Positive = Field(
        4096, description="most tokens of the target's vocabulary.", json_schema_extra=_only(vocabulary=_LEARNED)
    )
    minimum_count: Positive = Field(
        2,
        description="Characters and words that are rarer are read as the unknown token.",
        json_schema_extra=_only(vocabulary=_COUNTED, source_vocabulary=_COUNTED),
    )
    longest_source: Positive = Field(
        100, description="Most tokens of a source: longer ones are not learned from, and refused when serving."
    )
    longest_target: Positive = Field(
        100, description="Most tokens of a target with its end: longer ones are neither learned from nor written."
    )

    cell: CellName = Field("gru", description="the recurrent cell.")
    layers: Positive = Field(1, description="Layers.")
    embedding: Positive = Field(256, description="Features of a token's embedding.")
    attention: bool = Field(
        True, description="Let the decoder attend to all positions of the source, not read one vector alone."
    )
    attention_score: Literal["additive", "multiplicative"] = Field(
        "additive", description="The score of the attention."
    )
    bidirectional: bool = Field(
        True, description="let the encoder read in both directions, each with half of the units."
    )
    hidden: Positive = Field(512, description="Units of a layer.")
    one_hot: bool = Field(False, description="Use one-hot features of tokens instead of a learned embedding.")
    source_deviation: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Standard deviation of the source's embedding at the start; 1 / sqrt(features) if not given."
    )

    label_smoothing: Share = Field(0.0, description="Share of the target probability that is spread over all tokens.")
    scheduled_sampling: Share = Field(
        0.0, description="Share of the decoder's inputs that are its own samples at the end of the training."
    )
    curriculum: Share = Field(
        0.0, description="Share of the steps in which longer sources join, from the shortest fifth to all."
    )

    @field_validator("vocabulary_size")
    @classmethod
    def _check_vocabulary_size(cls, value: int, info: ValidationInfo) -> int:
        return _checked_size(value, info.data.get("vocabulary"))

    @field_validator("source_vocabulary_size")
    @classmethod
    def _check_source_vocabulary_size(cls, value: int, info: ValidationInfo) -> int:
        return _checked_size(value, info.data.get("source_vocabulary"))

    @field_validator("hidden")
    @classmethod
    def _check_hidden(cls, value: int, info: ValidationInfo) -> int:
        if value % 2 and info.data.get("bidirectional"):
            raise ValueError("each direction of a bidirectional encoder has half of the units, so they must be even")
        return value

    def vocabularies(self) -> dict[str, VocabularySpec]:
        return {
            "source-": vocabulary_spec(self.source_vocabulary, prefix="source-"),
            "": vocabulary_spec(self.vocabulary),
        }

    @property
    def network_name(self) -> str:
        encoder = f"{'bidirectional ' if self.bidirectional else ''}encoder"
        way = f"{self.attention_score} attention" if self.attention else "one vector"
        return f"{encoder} and decoder of {self.layers} x {self.cell} of {self.hidden} units, {way}"


def _checked_size(value: int, kind: str | None) -> int:
    if kind == "subwords" and value < _BYTES:
        raise ValueError(f"every byte is a subword, so at least {_BYTES} are needed")
    return value


# The configuration of a run, by its task.
TrainingConfig = Annotated[TextConfig | FeaturesConfig | TreeConfig | TranslationConfig, Field(discriminator="task")]
_ADAPTER: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


def parse_config(values: Mapping[str, Any]) -> TrainingConfig:
    """Parse a configuration of the kind that its task asks for.

    Raises:
        pydantic.ValidationError: the values are no configuration.
    """
    return _ADAPTER.validate_python(values)
