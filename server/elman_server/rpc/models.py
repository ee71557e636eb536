"""The models of this server, and which of them a request means."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elman_bundle import Bundle, EncodingError, TextVocabulary
from elman_bundle.vocabulary import TokenIds
from elman_protos import v1
from elman_server.engine import state_arrays
from elman_server.errors import InvalidFieldError, ModelNotFoundError, ModelUnsuitableError, listed, shortened
from elman_server.rpc.s_expressions import Bracket, Brackets
from elman_server.scheduling import Scheduler
from elman_server.sessions import SessionModel, StateLayout


@dataclass(frozen=True)
class Labelling:
    """How a model labels: its labels in the order of their ids, and whether each step has its own."""

    labels: tuple[str, ...]
    every_step: bool


@dataclass(frozen=True)
class ServedModel:
    """A bundle and the scheduler that runs it.

    Attributes:
        bundle: what it is.
        scheduler: what runs it.
        provider: where it runs, "cpu" or "cuda".
    """

    bundle: Bundle
    scheduler: Scheduler
    provider: str

    @property
    def name(self) -> str:
        return self.bundle.name

    @property
    def has_encoder(self) -> bool:
        """Whether its sequences start from a source."""
        return self.bundle.spec.HasField("encoder")

    @property
    def reads_source_only(self) -> bool:
        """Whether its step reads nothing: what it labels is what its encoder reads."""
        return not self.bundle.spec.step.inputs

    @property
    def input_spec(self) -> v1.InputSpec:
        """What it reads at each step; if it reads nothing there, at each position of its source."""
        step = self.bundle.spec.step
        return step.inputs[0] if step.inputs else self.bundle.spec.encoder.input

    @property
    def reads_trees(self) -> bool:
        """Whether its step is taken at the nodes of a tree."""
        return self.bundle.spec.step.HasField("tree")

    @property
    def reads_numbers(self) -> bool:
        """Whether its input is plain numbers and not tokens. Nothing below that is about text is for it."""
        return not self.input_spec.HasField("token")

    @cached_property
    def text_spec(self) -> v1.VocabularySpec:
        """The vocabulary of the token input."""
        return self.bundle.vocabulary_spec(self.input_spec.token.vocabulary)

    @cached_property
    def source_vocabulary(self) -> TextVocabulary:
        """The vocabulary of what its encoder reads, where that is tokens."""
        return self.bundle.text_vocabulary(self.bundle.spec.encoder.input.token.vocabulary)

    @cached_property
    def vocabulary(self) -> TextVocabulary:
        return self.bundle.text_vocabulary(self.text_spec.name)

    def token_of(self, word: str) -> int:
        """The one token that a word is.

        Raises:
            EncodingError: it is none, or is several.
        """
        ids = self.vocabulary.encode(word)
        if len(ids) != 1:
            raise EncodingError(f"a node's word is one token, but this is {len(ids)} to the model", 0)
        return int(ids[0])

    @cached_property
    def bracket(self) -> Callable[[str], Bracket]:
        """Tells what a bracket of an s-expression says; see `read_bracket`."""
        return Brackets(self.token_of).__getitem__

    def count_unknown(self, ids: TokenIds) -> int:
        """How many of the ids stand for something the vocabulary does not have."""
        unknown = self.vocabulary.unknown_id
        return 0 if unknown is None else int(np.count_nonzero(ids == unknown))

    def count_unknown_source(self, values: NDArray[Any]) -> int:
        """How many of a source's positions stand for something that the encoder's vocabulary does not have."""
        if not self.bundle.spec.encoder.input.HasField("token") or self.source_vocabulary.unknown_id is None:
            return 0
        return int(np.count_nonzero(values == self.source_vocabulary.unknown_id))

    def token_texts(self, ids: TokenIds) -> list[str]:
        """The text of each of a sequence's tokens: whole characters only, so that of a character stands with its last
        token; joined they are the sequence's text."""
        decoder, last = self.vocabulary.decoder(), len(ids) - 1
        return [decoder.decode([token], final=index == last) for index, token in enumerate(ids.tolist())]

    @cached_property
    def generates(self) -> bool:
        return any(output.HasField("next_token_logits") for output in self.bundle.spec.step.outputs)

    @cached_property
    def labelling(self) -> Labelling | None:
        for output in self.bundle.spec.step.outputs:
            if output.HasField("label_logits"):
                meaning = output.label_logits
                return Labelling(self.bundle.labels(meaning.vocabulary), meaning.scope == v1.LABEL_SCOPE_STEP)
        return None

    @cached_property
    def for_sessions(self) -> SessionModel:
        """What sessions know of it.

        Raises:
            ModelUnsuitableError: they can keep nothing of it.
        """
        if self.reads_trees:
            rule = "it reads trees, and a session keeps a sequence"
            raise ModelUnsuitableError("model", repr(self.name), rule, "Send a whole tree with each call")
        if self.has_encoder:
            rule = "it starts from a source, and a session keeps tokens only"
            raise ModelUnsuitableError("model", repr(self.name), rule, "Send the source with each call")
        if self.reads_numbers:
            rule = "it reads numbers, and a session keeps tokens only"
            raise ModelUnsuitableError("model", repr(self.name), rule, "Use StreamClassify, which keeps its state")
        layout = StateLayout(state_arrays(self.bundle))
        return SessionModel(self.name, self.bundle.digest, self.scheduler, layout, self.vocabulary.size, self.generates)

    @cached_property
    def begin_token(self) -> int | None:
        """What every sequence begins with, if anything."""
        return self.text_spec.begin_token_id if self.text_spec.HasField("begin_token_id") else None

    def with_begin_token(self, ids: TokenIds) -> TokenIds:
        """A sequence as it is read from its beginning: the begin token first, where the model generates and has one."""
        if self.generates and self.begin_token is not None:
            return np.concatenate([[self.begin_token], ids]).astype(np.int64)
        return ids

    @cached_property
    def end_token(self) -> int | None:
        """What ends a generation, if anything does."""
        return self.text_spec.end_token_id if self.text_spec.HasField("end_token_id") else None

    def to_proto(self) -> v1.Model:
        return v1.Model(
            spec=self.bundle.spec,
            digest=self.bundle.digest,
            provider=self.provider,
            slot_count=self.scheduler.slot_count,
            running_count=self.scheduler.running_count,
            waiting_count=self.scheduler.waiting_count,
            waiting_limit=self.scheduler.waiting_limit,
        )


class Models:
    """All models of a server, by name."""

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in sorted(models, key=lambda model: model.name)}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def named(self, name: str, field: str) -> ServedModel:
        """The model `name`.

        Raises:
            InvalidFieldError: `field` is empty.
            ModelNotFoundError: there is none of that name.
        """
        if not name:
            raise InvalidFieldError(field, "none", f"a name is needed; this server holds {self._known()}")
        if name not in self._models:
            # A status travels in headers, which have a limit: no name is repeated at any length.
            shown = shortened(name, longest=80)
            raise ModelNotFoundError(field, repr(shown), f"there is no such model; this server holds {self._known()}")
        return self._models[name]

    def that_keeps_sessions(self, name: str) -> ServedModel:
        """The model of a new session; without a name the only one there is."""
        return self._chosen(name, self._that_read_tokens(), "can keep a session")

    def that_reads(self, name: str) -> ServedModel:
        """The model an Embed or Inspect request means; without a name the only one there is."""
        model = self._chosen(name, self._that_read_tokens(), "can read an input")
        if model.reads_trees:
            raise ModelUnsuitableError("model", repr(model.name), "it reads trees", "Use Classify")
        if model.has_encoder:
            rule = "it starts from a source, which this call does not have"
            raise ModelUnsuitableError("model", repr(model.name), rule, "Use Generate, Choose, Score or Classify")
        if model.reads_numbers:
            raise ModelUnsuitableError("model", repr(model.name), "it reads numbers", "Use Classify or StreamClassify")
        return model

    def _that_read_tokens(self) -> list[ServedModel]:
        return [
            model
            for model in self._models.values()
            if not (model.reads_numbers or model.has_encoder or model.reads_trees)
        ]

    def that_generates(self, name: str) -> ServedModel:
        """The model a Generate request means; without a name the only one that generates."""
        model = self._chosen(name, [model for model in self._models.values() if model.generates], "can generate text")
        if not model.generates:
            raise ModelUnsuitableError(
                "model", repr(model.name), "it has labels and does not generate text", "Use Classify"
            )
        return model

    def that_labels(self, name: str, field: str) -> tuple[ServedModel, Labelling]:
        """The model a Classify or StreamClassify request means; without a name the only one with labels."""
        suitable = [model for model in self._models.values() if model.labelling]
        model = self._chosen(name, suitable, "can label", field)
        if model.labelling is None:
            raise ModelUnsuitableError(field, repr(model.name), "it generates text and has no labels", "Use Generate")
        return model, model.labelling

    def _chosen(self, name: str, suitable: list[ServedModel], ability: str, field: str = "model") -> ServedModel:
        if name:
            return self.named(name, field)
        if len(suitable) != 1:
            if not suitable:
                raise ModelUnsuitableError(
                    field, "none", f"no model of this server {ability}; it holds {self._known()}"
                )
            names = listed(model.name for model in suitable)
            raise InvalidFieldError(
                field, "none", f"{len(suitable)} models of this server {ability}: {names}", "Name one"
            )
        return suitable[0]

    def _known(self) -> str:
        return listed(self._models) or "none"
