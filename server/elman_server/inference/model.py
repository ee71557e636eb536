"""A served model: its bundle, the scheduler that runs it, and what the manifest says about its inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from elman_bundle import Bundle, EncodingError, TextVocabulary
from elman_bundle.spec import LABEL_SCOPE_STEP, InputSpec, VocabularySpec
from elman_bundle.vocabulary import TokenIds
from elman_server.engine import state_arrays
from elman_server.errors import ModelUnsuitableError
from elman_server.inference.trees.brackets import Bracket, BracketCache
from elman_server.scheduling import Scheduler
from elman_server.sessions import SessionModel, StateLayout


@dataclass(frozen=True)
class LabelOutput:
    """The output of a model that labels.

    Attributes:
        labels: in the order of their ids.
        every_step: whether each step has a label of its own.
    """

    labels: tuple[str, ...]
    every_step: bool


@dataclass(frozen=True)
class ServedModel:
    """A bundle and the scheduler that runs it.

    What depends on the manifest alone is computed at its first use and kept: a property for each, hence their number.

    Attributes:
        bundle: the model.
        scheduler: runs its sequences.
        provider: where it runs, "cpu" or "cuda".
    """

    bundle: Bundle
    scheduler: Scheduler
    provider: str

    @cached_property
    def name(self) -> str:
        return self.bundle.name

    @cached_property
    def slot_count(self) -> int:
        """The largest number of its sequences that run at the same time."""
        return self.scheduler.slot_count

    # What it reads

    @cached_property
    def has_encoder(self) -> bool:
        """Whether its sequences start from a source."""
        return self.bundle.spec.HasField("encoder")

    @cached_property
    def reads_source_only(self) -> bool:
        """Whether its step has no input: it labels what its encoder reads."""
        return not self.bundle.spec.step.inputs

    @cached_property
    def reads_trees(self) -> bool:
        """Whether it takes a step at each node of a tree."""
        return self.bundle.spec.step.HasField("tree")

    @cached_property
    def input_spec(self) -> InputSpec:
        """The input of a step, or of a position of the source if a step has none."""
        step = self.bundle.spec.step
        return step.inputs[0] if step.inputs else self.bundle.spec.encoder.input

    @cached_property
    def reads_numbers(self) -> bool:
        """Whether its input is numbers and not tokens. Everything below about text is for models that read tokens."""
        return not self.input_spec.HasField("token")

    @cached_property
    def text_spec(self) -> VocabularySpec:
        """The manifest's entry of the vocabulary of the input."""
        return self.bundle.vocabulary_spec(self.input_spec.token.vocabulary)

    @cached_property
    def vocabulary(self) -> TextVocabulary:
        """The vocabulary of the input."""
        return self.bundle.text_vocabulary(self.text_spec.name)

    @cached_property
    def vocabulary_size(self) -> int:
        """The number of tokens of the vocabulary of the input."""
        return self.vocabulary.size

    @cached_property
    def source_vocabulary(self) -> TextVocabulary | None:
        """The vocabulary of the encoder's input; None if the encoder reads numbers."""
        source = self.bundle.spec.encoder.input
        return self.bundle.text_vocabulary(source.token.vocabulary) if source.HasField("token") else None

    @cached_property
    def begin_token(self) -> int | None:
        """The token that every sequence begins with, if any."""
        return self.text_spec.begin_token_id if self.text_spec.HasField("begin_token_id") else None

    @cached_property
    def begin_tokens(self) -> tuple[int, ...]:
        """What goes before an input: the begin token, where the model generates and has one."""
        return (self.begin_token,) if self.generates and self.begin_token is not None else ()

    @cached_property
    def end_token(self) -> int | None:
        """The token that ends a generation, if any."""
        return self.text_spec.end_token_id if self.text_spec.HasField("end_token_id") else None

    @cached_property
    def ungenerated_ids(self) -> frozenset[int]:
        """The tokens that are never generated, such as the unknown token and the begin token."""
        return frozenset(self.bundle.ungenerated_ids(self.text_spec.name))

    # What it shows

    @cached_property
    def generates(self) -> bool:
        """Whether it has next-token logits."""
        return any(output.HasField("next_token_logits") for output in self.bundle.spec.step.outputs)

    @cached_property
    def label_output(self) -> LabelOutput | None:
        """Its labels, if it has any."""
        for output in self.bundle.spec.step.outputs:
            if output.HasField("label_logits"):
                meaning = output.label_logits
                return LabelOutput(self.bundle.labels(meaning.vocabulary), meaning.scope == LABEL_SCOPE_STEP)
        return None

    @cached_property
    def for_sessions(self) -> SessionModel:
        """What sessions need to know of it.

        Raises:
            ModelUnsuitableError: sessions cannot keep its state.
        """
        if self.reads_trees:
            rule, remedy = "it reads trees, and a session keeps a sequence", "Send a whole tree with each call"
        elif self.has_encoder:
            rule = "it starts from a source, and a session keeps tokens only"
            remedy = "Send the source with each call"
        elif self.reads_numbers:
            rule = "it reads numbers, and a session keeps tokens only"
            remedy = "Use StreamClassify, which keeps its state"
        else:
            layout, size = StateLayout(state_arrays(self.bundle)), self.vocabulary_size
            return SessionModel(self.name, self.bundle.digest, self.scheduler, layout, size, self.generates)
        raise ModelUnsuitableError("model", repr(self.name), rule, remedy)

    # Words of trees and texts of tokens

    def token_of(self, word: str) -> int:
        """Return the one token that a word is.

        Raises:
            EncodingError: the word is not exactly one token.
        """
        ids = self.vocabulary.encode(word)
        if len(ids) != 1:
            raise EncodingError(f"a node's word is one token, but this is {len(ids)} to the model", 0)
        return int(ids[0])

    @cached_property
    def bracket(self) -> Callable[[str], Bracket]:
        """`read_bracket` for the words of this model, with a cache."""
        return BracketCache(self.token_of).__getitem__

    def token_texts(self, ids: TokenIds) -> list[str]:
        """Return the text of each token of a sequence, complete characters only: a character of more than one token
        belongs to its last token. Joined they are the text of the sequence."""
        decoder, last = self.vocabulary.decoder(), len(ids) - 1
        return [decoder.decode([token], final=index == last) for index, token in enumerate(ids.tolist())]
