"""Everything that decides what a training run computes, and the presets.

A run is a function of its configuration and its corpus: the same two give the same numbers on the same machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationInfo, field_validator

from elman_bundle.kinds import InputKind, VocabularySpec, vocabulary_spec
from elman_training.corpus import STDLIB

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Precision = Literal["float32", "bfloat16"]

_BYTES = 256
DIGITS = "digits"  # the embedded pictures
STORIES = "stories"  # made, not read


class RunConfig(BaseModel):
    """What every training run decides, whatever it learns. `elman train --help` explains the values that people change.

    Attributes:
        preset: the preset that the run was started with, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: str | None = None
    task: str
    corpus: str
    dropout: Share = 0.1
    lanes: Positive = 64  # rows of a batch
    steps: Positive = 1000
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    final_learning_rate: Share = 0.05  # where the cosine ends, as a share of learning_rate
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    average_decay: Share = 0.0  # of the running mean of the weights that is validated and kept; 0: none
    precision: Precision = "float32"  # of the products, where the processor can; weights stay float32
    validate_every: Positive = 100
    validation_limit: Positive = 200_000  # tokens (lm), characters (tag) or examples held out that are used
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    def vocabularies(self) -> dict[str, VocabularySpec]:
        """How the run's folder holds its vocabularies: by what their files' names begin with, what a manifest would say
        of each but for its size."""
        return {}

    @property
    def network_name(self) -> str:
        """The network in a few words, for people."""
        raise NotImplementedError


class TextConfig(RunConfig):
    """A network that reads text and says something at each token, or after the last one."""

    task: Literal["lm", "classify", "tag"]
    corpus: str = STDLIB
    corpus_limit: Positive | None = None  # characters; the rest of the corpus is left unread
    vocabulary: InputKind = "characters"
    vocabulary_size: Positive = 4096  # the most tokens, of words, subwords and symbols
    lower_case: bool = False  # of words and symbols
    minimum_count: Positive = 2  # rarer characters and words are read as the unknown token
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1

    cell: Literal["elman", "lstm", "gru"] = "lstm"
    layers: Positive = 2
    embedding: Positive = 128
    hidden: Positive = 256
    bidirectional: bool = False  # reads whole texts, in both directions (classify)

    phrases: bool = False  # of a treebank (classify): whether every phrase in it is an example, or sentences alone
    polarity: bool = False  # of a treebank with labels 0 to 4: two classes, what is neutral left out

    # For lm and tag the lanes are contiguous stretches of the text.
    window: Positive = 128  # steps between detaching the state, for lm and tag
    restart: Share = 0.05  # how often a lane starts anew at a window, for lm

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
            raise ValueError("only words are put into lower case: it belongs to the vocabularies words and symbols")
        return value

    @field_validator("bidirectional", "phrases", "polarity")
    @classmethod
    def _check_of_classification(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("task") != "classify":
            raise ValueError("only what classifies whole texts can be so")
        return value

    def vocabularies(self) -> dict[str, VocabularySpec]:
        return {"": vocabulary_spec(self.vocabulary, lower_case=self.lower_case)}

    @property
    def network_name(self) -> str:
        both = "bidirectional " if self.bidirectional else ""
        return f"{self.layers} x {both}{self.cell} of {self.hidden} units"


class FeaturesConfig(RunConfig):
    """A feed-forward network that reads numbers and says what they are."""

    task: Literal["features"]
    corpus: str = DIGITS
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2  # of each class, before anything is held out

    layers: Positive = 2  # hidden ones
    hidden: Positive = 128
    input_noise: Annotated[float, Field(ge=0)] = 0.0  # added to the scaled inputs while training

    @property
    def network_name(self) -> str:
        return f"{self.layers} hidden layers of {self.hidden} units"


class TreeConfig(RunConfig):
    """A network that reads trees whose leaves are words, and labels every node."""

    vocabulary: ClassVar[InputKind] = "symbols"

    task: Literal["tree"]
    vocabulary_size: Positive = 20_000  # the most words
    lower_case: bool = True
    minimum_count: Positive = 2  # rarer words are read as the unknown token
    label_names: tuple[str, ...] = ()  # what the corpus's labels, in alphabetical order, are called; none: as they are

    cell: Literal["child-sum", "binary", "recursive"] = "child-sum"
    embedding: Positive = 64
    hidden: Positive = 128
    lanes: Positive = 32  # trees of a batch

    def vocabularies(self) -> dict[str, VocabularySpec]:
        return {"": vocabulary_spec(self.vocabulary, lower_case=self.lower_case)}

    @property
    def network_name(self) -> str:
        return f"{self.cell} tree of {self.hidden} units"


class TranslationConfig(RunConfig):
    """An encoder-decoder: it reads a source as a whole, then writes a target."""

    task: Literal["translate"]
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05  # for validation, where the corpus says nothing of it
    source_vocabulary: InputKind = "subwords"
    source_vocabulary_size: Positive = 4096
    vocabulary: InputKind = "subwords"  # of the target
    vocabulary_size: Positive = 4096
    minimum_count: Positive = 2
    # Longer pairs are not learnt from, longer sources not taken when served, longer targets not written.
    longest_source: Positive = 100
    longest_target: Positive = 100  # with the token that ends it

    cell: Literal["elman", "lstm", "gru"] = "gru"
    layers: Positive = 1  # of the encoder and of the decoder
    embedding: Positive = 256
    attention: bool = True
    attention_score: Literal["additive", "multiplicative"] = "additive"
    bidirectional: bool = True  # the encoder, each direction with half of the units
    hidden: Positive = 512
    one_hot: bool = False  # one-hot features of tokens instead of learnt ones
    source_deviation: Annotated[float, Field(gt=0)] | None = None  # of the source's embedding at first; 1 / sqrt(E)

    label_smoothing: Share = 0.0
    scheduled_sampling: Share = 0.0  # the share of drawn tokens that is reached in the end
    curriculum: Share = 0.0  # the share of the steps in which longer and longer sources join

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
            raise ValueError("each direction of a bidirectional encoder has half of the units, so they are even")
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
        raise ValueError(f"every byte is a subword, so there are {_BYTES} or more")
    return value


# What a run may be, told apart by its task.
TrainingConfig = Annotated[TextConfig | FeaturesConfig | TreeConfig | TranslationConfig, Field(discriminator="task")]
_ADAPTER: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)


def parse_config(values: Mapping[str, Any]) -> TrainingConfig:
    """The configuration that some values are, of the kind that their task asks for.

    Raises:
        pydantic.ValidationError: they are none.
    """
    return _ADAPTER.validate_python(values)


# The Stanford Sentiment Treebank's labels, 0 to 4.
_GRADES = ("very negative", "negative", "neutral", "positive", "very positive")

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # `make run`: two to four minutes on two cores.
    "python": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 96, "hidden": 384, "dropout": 0.0, "lanes": 32,
        "window": 96, "steps": 960, "learning_rate": 4e-3, "minimum_count": 50, "corpus_limit": 6_000_000,
        "validate_every": 240, "validation_limit": 100_000, "average_decay": 0.98,
    },
    # The same text by words, and by subwords: a third of the steps, a wide choice at each.
    "python-words": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 128, "hidden": 256, "dropout": 0.1, "lanes": 32,
        "window": 48, "steps": 960, "learning_rate": 4e-3, "vocabulary": "words", "minimum_count": 5,
        "corpus_limit": 6_000_000, "validate_every": 240, "validation_limit": 50_000, "average_decay": 0.98,
    },
    "python-subwords": {
        "task": "lm", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 128, "hidden": 256, "dropout": 0.1, "lanes": 32,
        "window": 48, "steps": 960, "learning_rate": 4e-3, "vocabulary": "subwords",
        "corpus_limit": 6_000_000, "validate_every": 240, "validation_limit": 50_000, "average_decay": 0.98,
    },
    # `make run`: streaming syntax highlighting, half a minute.
    "python-tags": {
        "task": "tag", "corpus": STDLIB,
        "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 128, "dropout": 0.0, "lanes": 64,
        "window": 96, "steps": 600, "learning_rate": 6e-3, "minimum_count": 50, "corpus_limit": 2_000_000,
        "validate_every": 100, "validation_limit": 100_000,
    },
    # Which package of the standard library a snippet comes from.
    "python-packages": {
        "task": "classify", "corpus": STDLIB,
        "cell": "gru", "layers": 1, "embedding": 64, "hidden": 192, "dropout": 0.2, "lanes": 64,
        "steps": 600, "learning_rate": 4e-3, "validate_every": 100,
    },
    "shakespeare": {
        "task": "lm", "cell": "lstm", "layers": 2, "embedding": 128, "hidden": 384, "dropout": 0.3, "lanes": 64,
        "window": 128, "steps": 3400, "learning_rate": 3e-3, "warmup_steps": 100, "weight_decay": 0.05,
        "average_decay": 0.995, "precision": "bfloat16", "validate_every": 400,
    },
    "names": {
        "task": "classify", "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 256, "dropout": 0.4, "lanes": 64,
        "minimum_count": 1, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 200,
        "weight_decay": 0.05,
    },
    # Whether a sentence speaks well of something: read left to right, so that the answer can change with every word.
    "sentiment": {
        "task": "classify", "vocabulary": "symbols", "vocabulary_size": 20_000, "lower_case": True, "minimum_count": 2,
        "phrases": True, "polarity": True, "cell": "lstm", "layers": 1, "embedding": 128, "hidden": 192,
        "dropout": 0.5, "lanes": 64, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.995,
        "validate_every": 200, "weight_decay": 0.05,
    },
    # The same, read in both directions before anything is said.
    "sentiment-bidirectional": {
        "task": "classify", "vocabulary": "symbols", "vocabulary_size": 20_000, "lower_case": True, "minimum_count": 2,
        "phrases": True, "polarity": True, "bidirectional": True, "cell": "lstm", "layers": 1, "embedding": 128,
        "hidden": 128, "dropout": 0.5, "lanes": 64, "steps": 3000, "learning_rate": 2e-3, "average_decay": 0.995,
        "validate_every": 200, "weight_decay": 0.05,
    },
    # Pictures of handwritten digits, 8 by 8.
    "digits": {
        "task": "features", "corpus": DIGITS,
        "layers": 2, "hidden": 256, "dropout": 0.4, "input_noise": 0.5, "lanes": 64, "steps": 800,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 100, "weight_decay": 0.05,
    },
    "sentiment-tree": {
        "task": "tree", "cell": "child-sum", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    "sentiment-binary-tree": {
        "task": "tree", "cell": "binary", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    "sentiment-recursive": {
        "task": "tree", "cell": "recursive", "label_names": _GRADES, "dropout": 0.5, "steps": 2160,
        "learning_rate": 2e-3, "average_decay": 0.99, "validate_every": 135,
    },
    # How English words are pronounced: sequence to sequence by way of one vector.
    "phonemes": {
        "task": "translate", "cell": "lstm", "layers": 1, "embedding": 64, "hidden": 512, "attention": False,
        "source_vocabulary": "characters", "vocabulary": "symbols", "minimum_count": 1, "longest_source": 40,
        "longest_target": 40, "dropout": 0.25, "label_smoothing": 0.1, "lanes": 128, "steps": 14_000,
        "learning_rate": 2e-3, "warmup_steps": 200, "average_decay": 0.998, "precision": "bfloat16",
        "validate_every": 1000,
    },
    "german-english": {
        "task": "translate", "cell": "lstm", "layers": 1, "embedding": 256, "hidden": 384, "attention": True,
        "source_vocabulary": "subwords", "source_vocabulary_size": 4096, "vocabulary": "subwords",
        "vocabulary_size": 4096, "longest_source": 80, "longest_target": 80, "dropout": 0.3, "label_smoothing": 0.1,
        "lanes": 64, "steps": 4500, "learning_rate": 2e-3, "warmup_steps": 400, "average_decay": 0.998,
        "precision": "bfloat16", "validate_every": 500,
    },
    # Questions about a story, answered in words; made, not read.
    "stories": {
        "task": "translate", "corpus": STORIES,
        "cell": "lstm", "layers": 1, "embedding": 128, "hidden": 128, "attention": True,
        "attention_score": "multiplicative", "source_deviation": 1.0,
        "source_vocabulary": "symbols", "vocabulary": "symbols", "minimum_count": 1, "longest_source": 150,
        "longest_target": 8, "dropout": 0.0, "lanes": 32, "steps": 24_000, "learning_rate": 3e-3, "warmup_steps": 200,
        "curriculum": 0.6, "average_decay": 0.998, "precision": "bfloat16", "validate_every": 1000,
    },
}  # fmt: skip
