"""The task of an encoder-decoder, many to many.

A target starts after the token `elman_bundle.BEGIN` and ends with `elman_bundle.END`. Pairs of similar length share a
batch; padding changes nothing (see `EncoderDecoder`) and is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor
from torch.nn import functional

from elman_bundle import BEGIN, END, ByteVocabulary, EncodingError, InputVocabulary, SubwordVocabulary
from elman_training.cells.cell import State
from elman_training.config import TranslationConfig
from elman_training.corpus_files import Note, no_note
from elman_training.corpus_vocabularies import make_vocabulary
from elman_training.encoder_decoder.beam_search import beam_search
from elman_training.encoder_decoder.network import EncoderDecoder
from elman_training.encoder_decoder.output_metrics import accuracy_by_facts, output_metrics
from elman_training.encoder_decoder.pair_batches import PairBatch
from elman_training.encoder_decoder.pair_corpus import Pair, PairCorpus
from elman_training.encoder_decoder.scheduled_sampling import sample_inputs
from elman_training.length_buckets import make_buckets
from elman_training.task import IGNORED, Ids, Progress, Tally, Task, Validation, pad
from elman_training.training_error import TrainingError

BEAMS = 5
_VALIDATION_ROWS = 128
_TEST_ROWS = 64
_FIRST_SHARE = 0.2  # of the pairs, with which a curriculum begins


class TranslationTask(Task):
    """A target for each source, with teacher forcing.

    With scheduled sampling (Bengio et al. 2015), a growing share of the decoder's inputs is drawn from the network.
    With label smoothing (Szegedy et al. 2016), a share of each target's probability is spread over all tokens;
    validation never smooths. With a curriculum (Bengio et al. 2009), training starts with the shortest sources, where a
    correspondence over a distance is easier to learn.

    Args:
        config: the configuration.
        corpus: the pairs.
        note: called with what was left out.
    """

    labels = None
    unit = "token"

    def __init__(self, config: TranslationConfig, corpus: PairCorpus, note: Note = no_note) -> None:
        self._config = config
        self._corpus = corpus
        self._make_vocabularies()
        encoded = [self._encode(pair.source, target) for pair in corpus.training for target in pair.targets]
        self._training = [
            (source, target)
            for source, target in encoded
            if len(source) <= config.longest_source and len(target) < config.longest_target
        ]
        if not self._training:
            raise TrainingError(
                f"{config.corpus}: no pair is as short as --longest-source {config.longest_source} and "
                f"--longest-target {config.longest_target} ask for"
            )
        if len(self._training) < len(encoded):
            note(
                f"{config.corpus}: left out: {len(encoded) - len(self._training)} of {len(encoded)} pairs to learn "
                f"from, longer than --longest-source {config.longest_source} or --longest-target "
                f"{config.longest_target}"
            )
        if config.curriculum:
            self._training.sort(key=_lengths)
        held_out = corpus.validation[: config.validation_limit]
        self._held_out = sorted((self._encode(pair.source, pair.targets[0]) for pair in held_out), key=_lengths)
        self._batches_of_epoch = lru_cache(maxsize=1)(self._make_epoch)

    def _make_vocabularies(self) -> None:
        config, pairs = self._config, self._corpus.training
        self.source_vocabulary = make_vocabulary(
            config.source_vocabulary,
            [pair.source for pair in pairs],
            config.source_vocabulary_size,
            config.minimum_count,
        )
        targets = [target for pair in pairs for target in pair.targets]
        self.vocabulary, self.begin, self.end = _with_begin_and_end(
            make_vocabulary(config.vocabulary, targets, config.vocabulary_size, config.minimum_count)
        )
        self.vocabularies = {"source-": self.source_vocabulary, "": self.vocabulary}

    def _encode(self, source: str, target: str) -> tuple[Ids, Ids]:
        try:
            encoded = self.source_vocabulary.encode(source), self.vocabulary.encode(target)
        except EncodingError as error:
            raise TrainingError(f"{self._config.corpus}: got the target {target[:60]!r}; {error}") from error
        if not len(encoded[0]):
            raise TrainingError(f"{self._config.corpus}: a source has no token: {source[:60]!r}")
        return encoded

    def data(self) -> Iterable[Ids]:
        for source, target in self._training:
            yield from (source, target)

    def batch(self, pairs: Sequence[tuple[Ids, Ids]]) -> PairBatch:
        """Make a batch of pairs of token ids."""
        source, lengths = pad([source for source, _ in pairs])
        inputs, _ = pad([np.concatenate(([self.begin], target)) for _, target in pairs])
        targets, _ = pad([np.concatenate((target, [self.end])) for _, target in pairs], fill=IGNORED)
        return PairBatch(source, lengths, inputs, targets)

    def _make_epoch(self, epoch: int, count: int) -> list[Ids]:
        """The batches of an epoch over the first `count` pairs."""
        random = np.random.default_rng([self._config.seed, epoch])
        lengths = [_lengths(pair) for pair in self._training[:count]]
        return make_buckets(lengths, self._rows, random)

    @property
    def _rows(self) -> int:
        return min(self._config.lanes, len(self._training))

    def _curriculum_size(self, step: int) -> int:
        """The number of pairs, the shortest ones, of an epoch that begins at a step."""
        total, until = len(self._training), self._config.curriculum * self._config.steps
        if step >= until:
            return total
        return max(self._rows, int(total * (_FIRST_SHARE + (1 - _FIRST_SHARE) * step / until)))

    def _batch_indices(self, step: int) -> Ids:
        """The pairs of a batch."""
        epoch = first = 0
        while True:
            count = self._curriculum_size(first)
            batches = -(-count // self._rows)
            if step < first + batches:
                return self._batches_of_epoch(epoch, count)[step - first]
            epoch, first = epoch + 1, first + batches

    def loss(self, network: EncoderDecoder, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        config = self._config
        batch = self.batch([self._training[index] for index in self._batch_indices(step)])
        inputs = batch.inputs
        if config.scheduled_sampling:
            inputs = sample_inputs(network, batch, config.scheduled_sampling * step / config.steps)
        logits = network(batch.source, batch.lengths, inputs)
        counted = (batch.targets != IGNORED).flatten()
        loss = functional.cross_entropy(
            logits.flatten(0, 1)[counted].float(),
            batch.targets.flatten()[counted],
            label_smoothing=config.label_smoothing,
        )
        return loss, {}, batch.tokens

    def validate(self, network: EncoderDecoder, *, rows: int) -> Validation:
        tally = Tally()
        for start in range(0, len(self._held_out), _VALIDATION_ROWS):
            batch = self.batch(self._held_out[start : start + _VALIDATION_ROWS])
            logits = network(batch.source, batch.lengths, batch.inputs).flatten(0, 1)
            counted = (batch.targets != IGNORED).flatten()
            tally.add(logits[counted], batch.targets.flatten()[counted])
        return tally.validation()

    def test(self, network: EncoderDecoder, progress: Progress) -> dict[str, float]:
        pairs = sorted(self._corpus.test, key=lambda pair: len(pair.source))
        outputs: list[str] = []
        for start in range(0, len(pairs), _TEST_ROWS):
            outputs += self.write(network, [pair.source for pair in pairs[start : start + _TEST_ROWS]])
            progress("writing", len(outputs) / len(pairs))
        measured = output_metrics(self._corpus.form, pairs, outputs)
        if any(pair.choices for pair in pairs):
            correct = []
            for number, pair in enumerate(pairs, start=1):
                correct.append(self.choose(network, pair) in pair.targets)
                progress("choosing", number / len(pairs))
            measured |= accuracy_by_facts("test_chosen", pairs, correct)
        return measured

    def write(self, network: EncoderDecoder, sources: Sequence[str], width: int = BEAMS) -> list[str]:
        """The best target that a beam search finds for each source."""
        source, lengths = pad([self.source_vocabulary.encode(text) for text in sources])
        found = beam_search(
            network, source, lengths, begin=self.begin, end=self.end, width=width,
            longest=self._config.longest_target,
        )  # fmt: skip
        return [self.vocabulary.decoder().decode(ids, final=True) for ids in found]

    def choose(self, network: EncoderDecoder, pair: Pair) -> str:
        """The most probable of a pair's choices, with the token that ends them."""
        batch = self.batch([self._encode(pair.source, choice) for choice in pair.choices])
        logits = network(batch.source, batch.lengths, batch.inputs).double()
        losses = functional.cross_entropy(logits.transpose(1, 2), batch.targets, ignore_index=IGNORED, reduction="none")
        return pair.choices[int(losses.sum(1).argmin())]


def _lengths(pair: tuple[Ids, Ids]) -> tuple[int, int]:
    return len(pair[0]), len(pair[1])


def _with_begin_and_end(vocabulary: InputVocabulary) -> tuple[InputVocabulary, int, int]:
    """The vocabulary with BEGIN and END as control tokens, and their ids. Vocabularies of bytes and subwords have these
    tokens already."""
    if isinstance(vocabulary, ByteVocabulary | SubwordVocabulary):
        begin, end = (int(vocabulary.encode(token)[0]) for token in (BEGIN, END))
        return vocabulary.with_control((begin, end)), begin, end
    tokens = [*(token for token in vocabulary.tokens if token not in (BEGIN, END)), BEGIN, END]
    begin, end = len(tokens) - 2, len(tokens) - 1
    return type(vocabulary)(tokens, vocabulary.unknown_id, control_ids=(begin, end)), begin, end
