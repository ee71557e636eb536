"""The task of an encoder-decoder: what a batch is, what the loss is, what is measured.

A target begins after `elman_bundle.BEGIN` and is ended by `elman_bundle.END`. Pairs of about the same length share a
batch; what is padded changes nothing (see `EncoderDecoder`) and counts for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from elman_bundle import BEGIN, END, ByteVocabulary, InputVocabulary, SubwordVocabulary
from elman_training.beam import beam_search
from elman_training.buckets import make_buckets
from elman_training.cells import State
from elman_training.config import TranslationConfig
from elman_training.encoder_decoder import EncoderDecoder
from elman_training.errors import TrainingError
from elman_training.figures import by_facts, figures_of
from elman_training.lanes import IGNORED, Ids
from elman_training.pairs import Pair, PairCorpus
from elman_training.task import Tally, Task, Validation, pad
from elman_training.vocabularies import make_vocabulary

BEAMS = 5
_TEST_ROWS = 64
_FIRST_SHARE = 0.2  # of the pairs, which a curriculum begins with


@dataclass(frozen=True)
class Batch:
    """Pairs side by side, zeros behind the shorter ones.

    Attributes:
        source: token ids [B, S].
        lengths: of the sources, int64 [B].
        inputs: the targets behind the token that begins them, int64 [B, T].
        wanted: the targets with the token that ends them, int64 [B, T]; IGNORED behind it.
    """

    source: Tensor
    lengths: Tensor
    inputs: Tensor
    wanted: Tensor

    @property
    def tokens(self) -> int:
        """Of sources and targets, without padding."""
        return int(self.lengths.sum()) + int((self.wanted != IGNORED).sum())


class TranslationTask(Task):
    """Many to many: a target for each source, with teacher forcing.

    With scheduled sampling (Bengio et al. 2015) some of the tokens that the decoder is given are not the target's but
    drawn from what it makes of those before them; their share grows with the steps. With label smoothing (Szegedy et
    al. 2016) a share of what is wanted is spread over all tokens; validation never smooths. With a curriculum short
    sources are learnt from first: what has to be matched over a distance is found out where that is small.

    Args:
        config: what to learn.
        corpus: from what.
    """

    labels = None
    unit = "token"

    def __init__(self, config: TranslationConfig, corpus: PairCorpus) -> None:
        self._config = config
        self._corpus = corpus
        sources = [pair.source for pair in corpus.training]
        targets = [target for pair in corpus.training for target in pair.targets]
        self.source_vocabulary = make_vocabulary(
            config.source_vocabulary, sources, config.source_vocabulary_size, config.minimum_count
        )
        self.vocabulary = _with_ends(
            make_vocabulary(config.vocabulary, targets, config.vocabulary_size, config.minimum_count)
        )
        self.vocabularies = {"source-": self.source_vocabulary, "": self.vocabulary}
        self.begin, self.end = (int(self.vocabulary.encode(token)[0]) for token in (BEGIN, END))
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
        if config.curriculum:
            self._training.sort(key=_lengths)
        held_out = corpus.validation[: config.validation_limit]
        self._held_out = sorted((self._encode(pair.source, pair.targets[0]) for pair in held_out), key=_lengths)
        self._batches_of_epoch = lru_cache(maxsize=1)(self._make_epoch)

    def _encode(self, source: str, target: str) -> tuple[Ids, Ids]:
        found = self.source_vocabulary.encode(source), self.vocabulary.encode(target)
        if not len(found[0]):
            raise TrainingError(f"{self._config.corpus}: a source has no token: {source[:60]!r}")
        return found

    def data(self) -> Iterable[Ids]:
        for source, target in self._training:
            yield from (source, target)

    def batch(self, pairs: Sequence[tuple[Ids, Ids]]) -> Batch:
        """Pairs of token ids as one batch."""
        source, lengths = pad([source for source, _ in pairs])
        inputs, _ = pad([np.concatenate(([self.begin], target)) for _, target in pairs])
        wanted, _ = pad([np.concatenate((target, [self.end])) for _, target in pairs], fill=IGNORED)
        return Batch(source, lengths, inputs, wanted)

    def _make_epoch(self, epoch: int, count: int) -> list[Ids]:
        """The batches of an epoch over the first `count` pairs."""
        random = np.random.default_rng([self._config.seed, epoch])
        lengths = [_lengths(pair) for pair in self._training[:count]]
        return make_buckets(lengths, self._rows, random)

    @property
    def _rows(self) -> int:
        return min(self._config.lanes, len(self._training))

    def _pairs_at(self, step: int) -> int:
        """How many pairs an epoch that begins at a step is over: with a curriculum the shortest ones at first (Bengio
        et al. 2009)."""
        total, until = len(self._training), self._config.curriculum * self._config.steps
        if step >= until:
            return total
        return max(self._rows, int(total * (_FIRST_SHARE + (1 - _FIRST_SHARE) * step / until)))

    def _indices_at(self, step: int) -> Ids:
        """The pairs of a batch."""
        epoch = first = 0
        while True:
            count = self._pairs_at(first)
            batches = -(-count // self._rows)
            if step < first + batches:
                return self._batches_of_epoch(epoch, count)[step - first]
            epoch, first = epoch + 1, first + batches

    def loss(self, network: EncoderDecoder, step: int, carried: State) -> tuple[Tensor, dict[str, Tensor], int]:
        config = self._config
        batch = self.batch([self._training[index] for index in self._indices_at(step)])
        inputs = batch.inputs
        if config.scheduled_sampling:
            inputs = sample_inputs(network, batch, config.scheduled_sampling * step / config.steps)
        logits = network(batch.source, batch.lengths, inputs)
        kept = (batch.wanted != IGNORED).flatten()
        loss = functional.cross_entropy(
            logits.flatten(0, 1)[kept].float(), batch.wanted.flatten()[kept], label_smoothing=config.label_smoothing
        )
        return loss, {}, batch.tokens

    def validate(self, network: EncoderDecoder, *, lanes: int) -> Validation:
        tally = Tally()
        for start in range(0, len(self._held_out), 128):
            batch = self.batch(self._held_out[start : start + 128])
            logits = network(batch.source, batch.lengths, batch.inputs).flatten(0, 1)
            kept = (batch.wanted != IGNORED).flatten()
            tally.add(logits[kept], batch.wanted.flatten()[kept])
        return tally.validation()

    def test(self, network: EncoderDecoder, progress: Callable[[str, float], None]) -> dict[str, float]:
        pairs = sorted(self._corpus.test, key=lambda pair: len(pair.source))
        written: list[str] = []
        for start in range(0, len(pairs), _TEST_ROWS):
            written += self.write(network, [pair.source for pair in pairs[start : start + _TEST_ROWS]])
            progress("writing", len(written) / len(pairs))
        found = figures_of(self._corpus.form, pairs, written)
        if any(pair.choices for pair in pairs):
            right = []
            for number, pair in enumerate(pairs, start=1):
                right.append(self.choose(network, pair) in pair.targets)
                progress("choosing", number / len(pairs))
            found |= by_facts("test_chosen", pairs, right)
        return found

    def write(self, network: EncoderDecoder, sources: Sequence[str], width: int = BEAMS) -> list[str]:
        """The best target that a beam search finds for each source."""
        source, lengths = pad([self.source_vocabulary.encode(text) for text in sources])
        found = beam_search(
            network, source, lengths, begin=self.begin, end=self.end, width=width,
            longest=self._config.longest_target,
        )  # fmt: skip
        return [self.vocabulary.decoder().decode(ids, final=True) for ids in found]

    def choose(self, network: EncoderDecoder, pair: Pair) -> str:
        """The likeliest of a pair's choices, with the token that ends them."""
        batch = self.batch([self._encode(pair.source, choice) for choice in pair.choices])
        logits = network(batch.source, batch.lengths, batch.inputs).double()
        losses = functional.cross_entropy(logits.transpose(1, 2), batch.wanted, ignore_index=IGNORED, reduction="none")
        return pair.choices[int(losses.sum(1).argmin())]


def _lengths(pair: tuple[Ids, Ids]) -> tuple[int, int]:
    return len(pair[0]), len(pair[1])


@torch.no_grad()
def sample_inputs(network: EncoderDecoder, batch: Batch, share: float) -> Tensor:
    """What the decoder is given with scheduled sampling (Bengio et al. 2015).

    Each token but the first is, with the probability `share`, one drawn from the network's own distribution after what
    it was given before, drawn tokens among it. No gradient goes through the draw there either, so that the loss over
    the result, with teacher forcing, is theirs.

    Args:
        network: in training, so with dropout.
        batch: of pairs.
        share: of drawn tokens.

    Returns:
        int64 [B, T], as `batch.inputs`.
    """
    constants, state = network.start(batch.source, batch.lengths)
    given = [batch.inputs[:, 0]]
    for place in range(1, batch.inputs.shape[1]):
        outputs, state = network.step({"token": given[-1]}, constants, state)
        drawn = torch.multinomial(torch.softmax(outputs["logits"].float(), dim=-1), 1)[:, 0]
        given.append(torch.where(torch.rand(len(drawn)) < share, drawn, batch.inputs[:, place]))
    return torch.stack(given, dim=1)


def _with_ends(vocabulary: InputVocabulary) -> InputVocabulary:
    """The same vocabulary with BEGIN and END, which every vocabulary of bytes has already."""
    if isinstance(vocabulary, ByteVocabulary | SubwordVocabulary):
        return vocabulary
    tokens = [*(token for token in vocabulary.tokens if token not in (BEGIN, END)), BEGIN, END]
    return type(vocabulary)(tokens, vocabulary.unknown_id)
